"""How fast raw text becomes clean, deduplicated text on all cores, and what a refresh costs that adds one percent.

    python -m benchmarks.corpus

The way of the graph's assets from raw_corpus to deduplicated_corpus, each artifact written, without Dagster's own time
(one to three seconds a step). Normalization and filters are measured together; starting the worker processes counts.
The peer, datatrove's filters with FineWeb2's settings for Khmer, is measured in `benchmarks.filters`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from khmer_assets.corpus.deduplication import all_documents, find_duplicates, remove_duplicates, sign_batch
from khmer_assets.corpus.filters import filter_batch
from khmer_assets.corpus.normalized import normalize_batch
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.documents import DOCUMENT, kept
from khmer_assets.sources.kinds import files
from khmer_assets.sources.reading import batches as read_batches
from resources.batches import Batches
from resources.storage import DATA, REMOVED, ROW_GROUP

SOURCES: dict[str, dict[str, Any]] = {
    "office_help": {"path": "office_help.jsonl", "text": ["km", "en"], "id": "id"},
    "wikipedia_lines": {"path": "wikipedia_lines.jsonl", "id": "id"},
    "spoken_prompts": {"path": "spoken_prompts.jsonl", "id": "id"},
    "constitution": {"path": "constitution.md", "split": "paragraph"},
}
REPETITIONS = 3
ADDED = 0.01


def documents(data: Path, copies: int) -> pl.DataFrame:
    """The real text as raw documents; each copy has ids and texts of its own."""
    rows = []
    for name, settings in SOURCES.items():
        source = Source(name=name, kind="files", license="see its origin", settings=settings)
        rows += [kept(batch.lazy()).collect() for batch in read_batches(source, files.read(source, data))]
    once = pl.concat(rows)
    return pl.concat(
        [
            once.with_columns(
                id=pl.format("{}#{}", "id", pl.lit(number)),
                text=pl.format("{}\n{}", "text", pl.lit("ច្បាប់ចម្លងទី" + str(number))) if number else "text",
                content_hash=pl.format("{}{}", pl.lit(f"{number:04x}"), pl.col("content_hash").str.slice(4)),
            )
            for number in range(copies)
        ]
    )


def clean(raw: Path, folder: Path, home: Path, recipe: Recipe) -> dict[str, float]:
    """Make each artifact once; return the seconds of each."""
    batches = Batches(home=str(home))
    seconds = {}
    start = time.perf_counter()

    def done(name: str) -> None:
        nonlocal start
        seconds[name] = time.perf_counter() - start
        start = time.perf_counter()

    normalized = partial(normalize_batch, settings=recipe.normalization)
    _write(batches.map("normalized", "1", normalized, pl.scan_parquet(raw)), folder / "normalized")
    done("normalized")
    judged = partial(filter_batch, settings=recipe.filters)
    frame = pl.scan_parquet(folder / "normalized" / DATA).select(*DOCUMENT)
    _write(batches.map("filtered", "1", judged, frame), folder / "filtered")
    done("filtered")
    settings = recipe.deduplication.model_copy(update={"embedder": None})
    filtered = pl.scan_parquet(folder / "filtered" / DATA)
    everything = all_documents({"all": filtered})
    signed = batches.map("signed", "1", partial(sign_batch, settings=settings), everything, workers="threads")
    index = find_duplicates(everything, signed, list(SOURCES), settings, home, None).collect()
    done("dedup_index")
    _write(remove_duplicates(filtered, index.lazy()), folder / "deduplicated")
    done("deduplicated")
    return seconds


def _write(rows: pl.LazyFrame, folder: Path) -> None:
    """As the I/O manager does."""
    folder.mkdir(exist_ok=True)
    removed = rows.filter(pl.col("rule").is_not_null())
    sinks = [removed.sink_parquet(folder / REMOVED, row_group_size=ROW_GROUP, lazy=True)]
    sinks.append(kept(rows).sink_parquet(folder / DATA, row_group_size=ROW_GROUP, lazy=True))
    pl.collect_all(sinks)


def main() -> None:
    """Measure, print the table and the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=PROJECT.parent / "shared" / "data")
    parser.add_argument("--copies", type=int, default=4, help="how often the text is taken")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        sys.exit(f"{arguments.data}: no such folder; name the one with office_help.jsonl with --data")
    recipe = Recipe.load(SAMPLE_RECIPE)
    full, refreshed = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = documents(arguments.data, arguments.copies)
        characters = int(raw["text"].str.len_chars().sum())
        half = pl.col("text").str.slice(pl.col("text").str.len_chars() // 2)
        new = raw.sample(fraction=ADDED, seed=1).with_columns(
            id=pl.format("{}+", "id"),
            text=pl.format("{} {}", "id", half),
            content_hash=pl.col("content_hash").str.reverse(),
        )
        raw.write_parquet(folder / "raw.parquet", row_group_size=ROW_GROUP)
        pl.concat([raw, new]).write_parquet(folder / "grown.parquet", row_group_size=ROW_GROUP)
        for number in range(REPETITIONS):
            home = folder / f"home{number}"
            full.append(clean(folder / "raw.parquet", folder, home, recipe))
            refreshed.append(clean(folder / "grown.parquet", folder, home, recipe))
            print(f"repetition {number + 1} of {REPETITIONS}", file=sys.stderr)
    table = pl.DataFrame(
        [
            {
                "artifact": artifact,
                "seconds": statistics.median(run[artifact] for run in full),
                "M characters/s": characters / 1e6 / statistics.median(run[artifact] for run in full),
                "seconds of the refresh": statistics.median(run[artifact] for run in refreshed),
            }
            for artifact in full[0]
        ]
    )
    print(f"{raw.height:,} documents, {characters:,} characters")
    print(markdown_table(table))
    cleaned = statistics.median(run["normalized"] + run["filtered"] for run in full)
    share = statistics.median(sum(run.values()) for run in refreshed) / statistics.median(sum(r.values()) for r in full)
    print(json.dumps({"characters_per_second": round(characters / cleaned), "refresh_share": round(share, 4)}))


if __name__ == "__main__":
    main()
