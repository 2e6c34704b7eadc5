"""How fast documents are judged, and how often as datatrove judges them with FineWeb2's configuration for Khmer.

    python -m benchmarks.filters --pages 300

datatrove's GopherRepetitionFilter, FineWebQualityFilter and GopherQualityFilter run as FineWeb2's pipeline sets them
up, with the words of khmer-nltk, which its limits were made for. Each of their rules also runs alone, so that
verdicts are compared rule by rule, whatever rule a document breaks first. The pages are Khmer ones of the given files,
normalized, and four worse versions of each fourth: with lines repeated, with a phrase repeated, with numbers in place
of words, and with its lines cut into a list. Both judge on one core. Peer rates count the three filters alone.
"""

import argparse
import functools
import json
import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from khmer_assets.corpus.filters import Filters, filter_batch
from khmer_assets.corpus.page_rules import KhmerPages
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.khmer.normalization import normalize
from khmer_assets.khmer.script import script_shares
from khmer_assets.khmer.words import words
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sources.documents import DOCUMENT, content_hash

DEFAULT_TEXT = ["office_help.jsonl:km", "wikipedia_lines.jsonl:text", "constitution.md"]
PAGE_CHARACTERS = 1_500  # lines of a file of lines are put together to pages of about this size
KHMER = "khm_Khmr"
REPEATS = 3

# A rule of ours, and the reason that datatrove gives for the same.
RULES = {
    "few_words": "gopher_short_doc",
    "many_words": "gopher_long_doc",
    "duplicate_lines": "dup_line_frac",
    "repeated_phrase": "top_n_gram",
    "duplicate_ngrams": "duplicated_n_grams",
    "duplicate_line_characters": "char_dup_ratio",
    "line_breaks": "list_ratio",
    "word_length": "gopher_avg",
    "hashes": "gopher_too_many_hashes",
    "ellipses": "gopher_too_many_ellipsis",
    "bullet_lines": "gopher_too_many_bullets",
    "ellipsis_lines": "gopher_too_many_end_ellipsis",
    "alphabetic_words": "gopher_below_alpha_threshold",
    "stop_words": "gopher_enough_stop_words",
}
Judge = Callable[[str], bool]


def pages(files: list[str], recipe: Recipe, count: int, seed: int) -> list[str]:
    """`count` Khmer pages of the files, normalized; `files` are "path:field" of JSON lines, or plain text."""
    found = []
    for name in files:
        path, _, field = name.rpartition(":")
        if not Path(path or name).exists():
            sys.exit(f"{path or name}: no such file; name JSON lines with --text PATH:FIELD, or text with --text PATH")
        if path:
            texts = pl.read_ndjson(path, infer_schema_length=None)[field].drop_nulls().to_list()
        else:
            texts = Path(name).read_text(encoding="utf-8").split("\n")
        short = sum(map(len, texts)) / len(texts) < PAGE_CHARACTERS / 2
        page: list[str] = []
        for text in texts:
            page.append(normalize(text, recipe.normalization)[0])
            if not short or sum(map(len, page)) >= PAGE_CHARACTERS:
                found.append("\n".join(page))
                page = []
    khmer = sorted({page for page in found if script_shares(page)[0] > 0.5})
    return random.Random(seed).sample(khmer, min(count, len(khmer)))


def worse(page: str, kind: str, chance: random.Random) -> str:
    """The page as a crawler may find it: with "lines", a "phrase", "numbers" or a "list" in it."""
    share = chance.uniform(0.05, 0.9)
    lines = page.split("\n")
    if kind == "lines":
        return "\n".join(lines + chance.choices(lines[: max(1, len(lines) // 4)], k=round(share * len(lines))))
    found = words(page)
    if kind == "phrase":
        length = chance.randint(1, 12)
        start = chance.randrange(max(1, len(found) - length))
        return page + " " + " ".join(["".join(found[start : start + length])] * round(share * len(found) / length))
    if kind == "numbers":
        return " ".join(str(chance.randrange(10_000)) if chance.random() < share / 3 else word for word in found)
    length = chance.randint(1, 12)
    return "\n".join("".join(found[start : start + length]) for start in range(0, len(found), length))


def datatrove_filters(limits: KhmerPages) -> tuple[Judge, dict[str, Judge]]:
    """Whether datatrove's filters, set as FineWeb2's pipeline does, keep a text: all of them, and each rule alone."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter

    Rules = dict[str, Any]
    no_repetition: Rules = dict.fromkeys(
        ("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac"), 0
    ) | {"top_n_grams": (), "dup_n_grams": ()}
    no_quality: Rules = dict.fromkeys(
        (
            "min_doc_words",
            "max_doc_words",
            "min_avg_word_length",
            "max_avg_word_length",
            "max_symbol_word_ratio",
            "max_bullet_lines_ratio",
            "max_ellipsis_lines_ratio",
            "max_non_alpha_words_ratio",
            "min_stop_words",
        )
    )
    no_lines: Rules = {
        "short_line_thr": 999,
        "line_punct_thr": limits.min_punctuated_lines,
        "char_duplicates_ratio": 999,
        "new_line_ratio": 999,
    }
    repetition: dict[str, Rules] = {
        "duplicate_lines": {"dup_line_frac": limits.max_duplicate_lines},
        "repeated_phrase": {"top_n_grams": tuple(limits.max_top_ngrams.items())},
        "duplicate_ngrams": {"dup_n_grams": tuple(limits.max_duplicate_ngrams.items())},
    }
    lines: dict[str, Rules] = {
        "duplicate_line_characters": {"char_duplicates_ratio": limits.max_duplicate_line_characters},
        "line_breaks": {"new_line_ratio": limits.max_line_breaks},
    }
    quality: dict[str, Rules] = {
        "few_words": {"min_doc_words": limits.min_words},
        "many_words": {"max_doc_words": limits.max_words},
        "word_length": {"min_avg_word_length": limits.min_word_length, "max_avg_word_length": limits.max_word_length},
        "hashes": {"max_symbol_word_ratio": limits.max_hashes},
        "bullet_lines": {"max_bullet_lines_ratio": limits.max_bullet_lines},
        "ellipsis_lines": {"max_ellipsis_lines_ratio": limits.max_ellipsis_lines},
        "alphabetic_words": {"max_non_alpha_words_ratio": limits.min_alphabetic_words},
        "stop_words": {"min_stop_words": limits.min_stop_words, "stop_words": list(limits.stop_words)},
    }

    def merged(rules: dict[str, Rules]) -> Rules:
        return functools.reduce(lambda one, other: one | other, rules.values())

    kinds = [
        (GopherRepetitionFilter, no_repetition, repetition),
        (FineWebQualityFilter, no_lines, lines),
        (GopherQualityFilter, no_quality, quality),
    ]
    whole = [kind(language=KHMER, **(off | merged(rules))) for kind, off, rules in kinds]
    alone = {name: kind(language=KHMER, **(off | rule)) for kind, off, rules in kinds for name, rule in rules.items()}

    def keeps(judges: list[Any]) -> Judge:
        return lambda text: all(judge.filter(Document(text=text, id="")) is True for judge in judges)

    return keeps(whole), {name: keeps([judge]) for name, judge in alone.items()}


def own_rules(settings: Filters) -> dict[str, Filters]:
    """Settings with which one rule alone can remove a page."""
    pages = settings.khmer_pages
    loose = KhmerPages(
        min_words=1,
        max_words=10**9,
        min_word_length=1e-9,
        max_word_length=1e9,
        min_alphabetic_words=0,
        min_stop_words=0,
        max_hashes=1e9,
        max_ellipses=1e9,
        max_line_breaks=1e9,
        max_duplicate_lines=1,
        max_duplicate_line_characters=1,
        max_bullet_lines=1,
        max_ellipsis_lines=1,
        max_top_ngrams={},
        max_duplicate_ngrams={},
    )
    fields = {
        "few_words": ["min_words"],
        "many_words": ["max_words"],
        "duplicate_lines": ["max_duplicate_lines"],
        "repeated_phrase": ["max_top_ngrams"],
        "duplicate_ngrams": ["max_duplicate_ngrams"],
        "duplicate_line_characters": ["max_duplicate_line_characters"],
        "line_breaks": ["max_line_breaks"],
        "word_length": ["min_word_length", "max_word_length"],
        "hashes": ["max_hashes", "max_ellipses"],
        "bullet_lines": ["max_bullet_lines"],
        "ellipsis_lines": ["max_ellipsis_lines"],
        "alphabetic_words": ["min_alphabetic_words"],
        "stop_words": ["min_stop_words"],
    }
    return {
        rule: settings.model_copy(
            update={"khmer_pages": loose.model_copy(update={name: getattr(pages, name) for name in names})}
        )
        for rule, names in fields.items()
    }


def as_batch(texts: list[str]) -> pl.DataFrame:
    """The texts as documents."""
    rows = [{"id": str(number), "text": text, "content_hash": content_hash(text)} for number, text in enumerate(texts)]
    return pl.DataFrame(rows, schema=DOCUMENT)


def main() -> None:
    """Judge the pages with both, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=300, help="pages to judge, besides their worse versions")
    parser.add_argument("--seed", type=int, default=1)
    data = PROJECT.parent / "shared" / "data"
    parser.add_argument("--text", action="append", metavar="PATH[:FIELD]", help="JSON lines, or text, to judge")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    recipe = Recipe.load(SAMPLE_RECIPE)
    found = pages(
        arguments.text or [str(data / name) for name in DEFAULT_TEXT], recipe, arguments.pages, arguments.seed
    )
    chance = random.Random(arguments.seed)
    kinds = {"as found": found} | {
        kind: [text for page in found[::4] if script_shares(text := worse(page, kind, chance))[0] > 0.5]
        for kind in ("lines", "phrase", "numbers", "list")
    }
    texts = [text for group in kinds.values() for text in group]
    # FineWeb2's rules alone: the others never remove
    settings = Filters(
        languages=["khm"],
        min_language_score=0,
        min_characters=1,
        max_characters=10**9,
        max_symbol_ratio=1,
        max_foreign_ratio=1,
        max_music_ratio=1,
        max_offensive_ratio=1,
    )
    print(f"{len(texts):,} texts, {sum(map(len, texts)):,} characters", flush=True)

    limits = KhmerPages()
    keeps, rules = datatrove_filters(limits)
    keeps(found[0])  # khmer-nltk loads its model
    started = time.perf_counter()
    theirs = [keeps(text) for text in texts]
    peer_rate = sum(map(len, texts)) / (time.perf_counter() - started)
    theirs_by_rule: dict[str, list[bool]] = {rule: [] for rule in rules}
    for text in texts:  # the words of a text are found once for all rules
        for rule, judge in rules.items():
            theirs_by_rule[rule].append(judge(text))

    batch = as_batch(texts)
    ours = filter_batch(batch, settings)["rule"].is_null().to_list()  # compiles, where that has not been done
    rates = []
    characters = sum(map(len, texts))
    copies = max(1, 4_000_000 // characters)
    enough = pl.concat([batch] * copies)
    for _ in range(REPEATS):
        started = time.perf_counter()
        filter_batch(enough, recipe.filters)
        rates.append(copies * characters / (time.perf_counter() - started))
    rate = sorted(rates)[REPEATS // 2]

    table = []
    for rule, alone in own_rules(settings).items():
        own = filter_batch(batch, alone)["rule"].is_null().to_list()
        table.append(_compared(rule, own, theirs_by_rule[rule]))
    table.append(_compared("all rules", ours, theirs))
    start = 0
    for kind, group in kinds.items():
        part = slice(start, start + len(group))
        table.append(_compared(f"all rules, {kind}", ours[part], theirs[part]))
        start += len(group)
    print(markdown_table(pl.DataFrame(table)))
    print(
        json.dumps(
            {
                "characters_per_second": round(rate),
                "peer_characters_per_second": round(peer_rate),
                "ratio": round(rate / peer_rate, 1),
                "agreement": round(sum(map(bool.__eq__, ours, theirs)) / len(texts), 4),
            }
        )
    )


def _compared(name: str, ours: list[bool], theirs: list[bool]) -> dict[str, Any]:
    """How many each removes of the same texts."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "rule": name,
        "texts": len(pairs),
        "removed": ours.count(False),
        "removed by datatrove": theirs.count(False),
        "only we": pairs.count((False, True)),
        "only datatrove": pairs.count((True, False)),
        "agreement": round(sum(one == other for one, other in pairs) / max(1, len(pairs)), 4),
    }


if __name__ == "__main__":
    main()
