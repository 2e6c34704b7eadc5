"""The training mixture: which documents train, which are held out, and how often the scarcer language is repeated."""

import hashlib
import shutil
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import Field, model_validator

from khmer_assets.foundation.settings import PositiveFloat, Settings
from khmer_assets.khmer.script import Language


class Mixture(Settings):
    """`weights`: share of the training characters by language. `validation_ratio`: share of the documents held out."""

    weights: dict[Language, PositiveFloat] = {"khm": 0.6, "eng": 0.4}
    validation_ratio: Annotated[float, Field(gt=0, lt=0.5)] = 0.04

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "Mixture":
        if abs(sum(self.weights.values()) - 1) > 1e-6:
            raise ValueError(f"weights must sum to 1, they sum to {sum(self.weights.values()):g}")
        return self


MIXTURE = pl.Schema(
    {
        "id": pl.String,
        "source": pl.String,
        "language": pl.String,
        "text": pl.String,
        "content_hash": pl.String,
        "split": pl.String,
        "copies": pl.UInt32,
    }
)

# Up to about four epochs, repeated data is worth almost as much as new data (Muennighoff et al. 2023, "Scaling
# Data-Constrained Language Models"); beyond, the model begins to learn it by heart.
MAX_COPIES = 4

PART_BYTES = 64_000_000  # of text that are sorted at a time
MOST_PARTS = 256  # files that are open at a time
ROW_GROUP = 512  # rows


def mix(documents: dict[str, pl.LazyFrame], settings: Mixture, seed: int, folder: Path) -> pl.LazyFrame:
    """The documents of all sources in a shuffled order, with the columns of `MIXTURE`; they lie in `folder`.

    `split` ("train" or "validation") depends on the content hash and the seed alone, so that a text is never in both
    and stays where it is when other documents come and go. `copies` says how often a training document is used: the
    scarcer language's are repeated so that the characters of each language follow the weights, at most `MAX_COPIES`
    times; a validation document counts once. Documents in a language without a weight are left out.

    The order is that of a number from each document's hash. The documents are parted by it into files of about
    `PART_BYTES` first, which are sorted one by one: memory does not grow with the corpus.

    A column `weight` (1 where there is none) multiplies how often a training document is used; below 1, as many of them
    are left out. The languages' weights hold for what is used.
    """
    columns = ["id", "source", "language", "text", "content_hash"]
    weighed = [
        frame if "weight" in frame.collect_schema() else frame.with_columns(weight=pl.lit(1.0))
        for frame in documents.values()
    ]
    everything = pl.concat([frame.select(*columns, "weight") for frame in weighed]).filter(
        pl.col("language").is_in(list(settings.weights))
    )
    validation = _fraction(0, seed) < settings.validation_ratio
    split = everything.with_columns(split=pl.when(validation).then(pl.lit("validation")).otherwise(pl.lit("train")))
    sizes = (
        split.group_by("language", "split")
        .agg(
            characters=(pl.col("text").str.len_chars() * pl.col("weight")).sum(),
            bytes=pl.col("text").str.len_bytes().cast(pl.Int64).sum(),
        )
        .collect(engine="streaming")
    )
    characters = dict(sizes.filter(split="train").select("language", "characters").iter_rows())
    wanted = pl.lit(1.0)
    for language, times in repeats_by_language(characters, settings).items():  # `replace` would hold all texts
        wanted = pl.when(language=language).then(times).otherwise(wanted)
    wanted = pl.min_horizontal(wanted * pl.col("weight"), MAX_COPIES)
    copies = wanted.floor() + (_fraction(1, seed) < wanted % 1).cast(pl.Float64)
    mixed = split.with_columns(copies=pl.when(split="train").then(copies).otherwise(1.0).cast(pl.UInt32))
    mixed = mixed.filter(pl.col("copies") > 0)
    return _in_order(mixed.select(*MIXTURE), _fraction(2, seed), int(sizes["bytes"].sum()), folder)


def _in_order(documents: pl.LazyFrame, place: pl.Expr, size: int, folder: Path) -> pl.LazyFrame:
    """The documents, whose texts have `size` bytes together, sorted by `place` (0 to 1, exclusive) and id."""
    count = min(MOST_PARTS, 1 + size // PART_BYTES)
    part = (place * count).floor().cast(pl.UInt32)
    by_part = pl.PartitionBy(folder / "parts", key={"part": part}, include_key=False)
    documents.sink_parquet(by_part, mkdir=True, compression="lz4", row_group_size=ROW_GROUP)
    found = []
    for number in range(count):
        files = folder / "parts" / f"part={number}"
        if files.exists():  # few documents leave some without any
            found.append(folder / f"{number:03}.parquet")
            pl.read_parquet(files).sort(place, "id").write_parquet(found[-1], row_group_size=ROW_GROUP)
            shutil.rmtree(files)
    return pl.scan_parquet(found) if found else pl.LazyFrame(schema=MIXTURE)


def too_few(mixed: pl.LazyFrame, documents: dict[str, pl.LazyFrame], settings: Mixture) -> str | None:
    """Why nothing can be trained, or nothing held out, with what `mix` made of the documents; None where both can."""
    if set(mixed.select(pl.col("split").unique()).collect()["split"]) == {"train", "validation"}:
        return None
    if left := mixed.select(pl.len()).collect().item():
        return (
            f"{left} documents are too few to train on some and hold {settings.validation_ratio:.0%} out: add text, "
            "let a source part its texts into more documents (`split`), or raise mixture.validation_ratio"
        )
    if other := sum(frame.select(pl.len()).collect().item() for frame in documents.values()):
        return f"all {other} documents are in languages without a weight: add theirs to mixture.weights in the recipe"
    return (
        "no document is left of any source: see which rules set them aside (removed.parquet of raw_corpus and "
        "filtered_corpus, or their pages), and correct the sources or the recipe's filters"
    )


def repeats_by_language(characters: dict[str, int], settings: Mixture) -> dict[str, float]:
    """How often each language's training characters are used, 1 to `MAX_COPIES`, to come near the weights.

    >>> repeats_by_language({"khm": 100, "eng": 200}, Mixture(weights={"khm": 0.6, "eng": 0.4}, validation_ratio=0.1))
    {'khm': 3.0, 'eng': 1.0}
    """
    weights = {str(language): weight for language, weight in settings.weights.items()}
    have = {language: count for language, count in characters.items() if count}
    if not have:
        return {}
    total = max(count / weights[language] for language, count in have.items())
    return {language: min(total * weights[language] / count, MAX_COPIES) for language, count in have.items()}


def _fraction(place: int, seed: int) -> pl.Expr:
    """A number from 0 to 1 (exclusive) from the content hash; each place and seed gives another."""
    mask = int(hashlib.sha256(f"{seed} {place}".encode()).hexdigest()[:8], 16)
    digits = pl.col("content_hash").str.slice(8 * place, 8).str.to_integer(base=16, dtype=pl.Int64)
    return (digits ^ mask) / 2**32
