"""How fast Khmer text is normalized, against the package pheasa on the same text in the same process.

    python -m benchmarks.normalization

Both follow Unicode Technical Note 61 with the same settings: U+200B removed, deprecated letters replaced. Ours has
further rules. Where the outputs differ, the peer's output is normalized by us: when that gives our output, by further
rules alone, these are what the difference consists of. They are listed, and the output counts as the same.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pheasa
import polars as pl

from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.script import script_shares

DEFAULT_TEXT = ["office_help.jsonl:km", "wikipedia_lines.jsonl:text"]
SETTINGS = Normalization(zero_width_space="remove", fold_deprecated=True)
# The rules that pheasa does not have; of U+FEFF it removes only that at the start.
FURTHER_RULES = {"lone_surrogate", "line_ending", "control_character", "byte_order_mark", "invisible_character",
                 "doubled_mark", "spaces"}  # fmt: skip


def ours(text: str) -> str:
    """The text as this project normalizes it."""
    return normalize(text, SETTINGS)[0]


def peer(text: str) -> str:
    """The text as pheasa normalizes it, with the settings that mean the same."""
    return str(pheasa.normalize(text, zwsp="strip", fold_deprecated=True))


def khmer_texts(files: list[str]) -> list[str]:
    """The texts, as they are, whose letters are mostly Khmer; `files` are "path:field" of JSON lines."""
    texts: list[str] = []
    for name in files:
        path, _, field = name.rpartition(":")
        if not Path(path).exists():
            sys.exit(f"{path}: no such file; name JSON lines with --text PATH:FIELD")
        column = pl.read_ndjson(path, infer_schema_length=None)[field].drop_nulls()
        texts += (text for text in column if script_shares(text)[0] > 0.5)
    return texts


def characters_per_second(
    contenders: list[Callable[[str], str]], texts: list[str], repetitions: int
) -> list[list[float]]:
    """The rates of each contender; a repetition runs all of them in turn, so that a busy machine slows all alike."""
    characters = sum(map(len, texts))
    rates: list[list[float]] = [[] for _ in contenders]
    for _ in range(repetitions):
        for contender, measured in zip(contenders, rates, strict=True):
            started = time.perf_counter()
            for text in texts:
                contender(text)
            measured.append(characters / (time.perf_counter() - started))
    return rates


def differences(texts: list[str]) -> tuple[Counter[str], int]:
    """In how many texts the outputs differ by each further rule of ours, and how many differences no rule explains."""
    by_rule: Counter[str] = Counter()
    unexplained = 0
    for text in texts:
        own, other = ours(text), peer(text)
        if own != other:
            again, rules = normalize(other, SETTINGS)
            by_rule.update(rules.keys())
            unexplained += again != own or not rules.keys() <= FURTHER_RULES
    return by_rule, unexplained


def main() -> None:
    """Measure both, print the tables and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each, in turn; their median counts")
    parser.add_argument("--text", action="append", metavar="PATH:FIELD", help="JSON lines to normalize")
    arguments = parser.parse_args()
    data = PROJECT.parent / "shared" / "data"
    texts = khmer_texts(arguments.text or [str(data / name) for name in DEFAULT_TEXT])
    print(f"{len(texts):,} texts, {sum(map(len, texts)):,} characters", flush=True)
    own, other = (
        statistics.median(rates) for rates in characters_per_second([ours, peer], texts, arguments.repetitions)
    )
    print(
        markdown_table(
            pl.DataFrame({"normalizer": ["ours", "pheasa"], "characters_per_second": [round(own), round(other)]})
        )
    )
    counts: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for text in texts:
        _, rules = normalize(text, SETTINGS)
        counts.update(rules)
        changed.update(rules.keys())
    by_rule, unexplained = differences(texts)
    print(
        markdown_table(
            pl.DataFrame(
                [
                    {
                        "rule": rule,
                        "changes": count,
                        "texts": changed[rule],
                        "texts_where_pheasa_differs": by_rule[rule],
                    }
                    for rule, count in counts.most_common()
                ]
            )
        )
    )
    print(
        json.dumps(
            {
                "characters_per_second": round(own),
                "peer_characters_per_second": round(other),
                "ratio": round(own / other, 2),
                "same_output": unexplained == 0,
            }
        )
    )


if __name__ == "__main__":
    main()
