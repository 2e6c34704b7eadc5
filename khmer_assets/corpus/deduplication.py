"""Which documents are copies of one another, over all sources, and which copy stays.

A copy is removed only for a document that stays and that it is itself similar to, as measured, never for a copy of a
copy. What stays is what most others are copies of; of equals the longest, then the first in the order of the catalogue,
then the smaller id. So a page that was republished with small changes stays once, and no group of copies loses all.

Texts and signatures stay on disk: what is held in memory is some 200 bytes a document.
"""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from khmer_assets.corpus.semantic import SemanticSearch
from khmer_assets.foundation.settings import Ratio
from khmer_assets.foundation.workers import cores
from khmer_assets.sources.documents import SET_ASIDE

if TYPE_CHECKING:
    from lancedb.db import DBConnection


class Deduplication(SemanticSearch):
    """MinHash over character n-grams, then embeddings, where all three `semantic_` thresholds must be reached.

    Without an embedder there is no second search.
    """

    permutations: Annotated[int, Field(ge=16, le=1024)] = 128
    jaccard: Annotated[float, Field(gt=0, lt=1)] = 0.8
    ngram: Annotated[int, Field(ge=1, le=32)] = 5
    semantic_jaccard: Ratio = 0.9
    semantic_length_ratio: Ratio = 0.7


INDEX = pl.Schema(
    {
        "id": pl.String,
        "source": pl.String,
        "content_hash": pl.String,
        "cluster": pl.UInt32,
        "kept_id": pl.String,
        "duplicate_rule": pl.String,
        "measure": pl.Float64,
        "reason": pl.String,
    }
)

ROWS_AT_ONCE = 50_000
# Groups of candidates are compared together while their texts have no more bytes than this.
BYTES_AT_ONCE = 256_000_000


def all_documents(documents: dict[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The columns that deduplication reads, of all sources."""
    columns = ["id", "source", "language", "content_hash", "text"]
    return pl.concat([frame.select(columns) for frame in documents.values()])


def sign_batch(batch: pl.DataFrame, settings: Deduplication) -> pl.DataFrame:
    """A batch of `all_documents` with, instead of the text, its size in `bytes` and `characters` and its MinHash
    `signature`."""
    from khmer_assets.corpus.ngrams import Texts, signatures

    texts = batch["text"]
    signed = signatures(Texts.of(texts), settings.ngram, settings.permutations)
    return batch.drop("text").with_columns(
        bytes=texts.str.len_bytes(),
        characters=texts.str.len_chars(),
        signature=pl.Series(signed, dtype=pl.Array(pl.UInt32, settings.permutations)),
    )


def find_duplicates(
    documents: pl.LazyFrame,
    signed: pl.LazyFrame,
    sources: list[str],
    settings: Deduplication,
    memory: Path,
    vectors: "DBConnection",
) -> pl.LazyFrame:
    """One row for each document, with the columns of `INDEX`.

    `documents`: of `all_documents`; `signed`: what `sign_batch` makes of it; `sources`: in the catalogue's order;
    `memory`: a folder for what the next run need not compare again.
    `cluster` numbers the documents that stay, `kept_id` is the one that stays of the cluster (its own, where
    `duplicate_rule` is null). Rules, in the order in which they are tried, with their measure:

    | duplicate_rule | measure |
    |---|---|
    | exact_duplicate | 1: the content hashes are equal |
    | near_duplicate | Jaccard similarity of the character n-grams, found by MinHash |
    | semantic_duplicate | cosine of the embeddings |
    """
    listed = (
        signed.drop("signature")
        .with_row_index("row")
        .with_columns(place=pl.col("source").replace_strict(sources, range(len(sources)), return_dtype=pl.Int64))
        .sort("characters", "place", "id", descending=[True, False, False])
        .collect()
    )
    contents = listed.unique("content_hash", keep="first", maintain_order=True).with_row_index("content")
    pairs = _near_pairs(documents, signed, contents, settings, memory)
    if settings.embedder is not None and contents.height:
        pairs = pl.concat([pairs, _semantic_pairs(documents, contents, pairs, settings, vectors)])
    verdicts = _verdicts(pairs, contents.height)
    kept = contents.select(kept_content="content", kept_id="id")
    return (
        listed.join(contents.select("content_hash", "content"), on="content_hash", how="left", maintain_order="left")
        .join(verdicts, on="content", how="left", maintain_order="left")
        .join(kept, on="kept_content", how="left", maintain_order="left")
        .with_columns(
            cluster="kept_content",
            duplicate_rule=pl.when(pl.col("duplicate_rule").is_null() & (pl.col("id") != pl.col("kept_id")))
            .then(pl.lit("exact_duplicate"))
            .otherwise("duplicate_rule"),
        )
        .with_columns(measure=pl.when(duplicate_rule="exact_duplicate").then(1.0).otherwise("measure"))
        .with_columns(reason=_sentence())
        .sort("row")
        .select(*INDEX)
        .cast(INDEX)
        .lazy()
    )


def remove_duplicates(documents: pl.LazyFrame, index: pl.LazyFrame) -> pl.LazyFrame:
    """One source's `documents` with rule, measure and reason from the `index` of `find_duplicates`."""
    columns = [*documents.collect_schema(), *SET_ASIDE]
    verdicts = index.select("id", "measure", "reason", rule="duplicate_rule")
    return documents.join(verdicts, on="id", how="left", maintain_order="left").select(columns)


def _sentence() -> pl.Expr:
    sentence: Any = pl.when(duplicate_rule="exact_duplicate").then(
        pl.format("has the same text as {}, which stays", "kept_id")
    )
    for rule, measure in (("near_duplicate", "Jaccard similarity"), ("semantic_duplicate", "cosine")):
        sentence = sentence.when(duplicate_rule=rule).then(
            pl.format(f"{measure} {{}} to {{}}, which stays", pl.col("measure").round(3), "kept_id")
        )
    return sentence


def _pairs(first: Any, second: Any, measure: Any, rule: str) -> pl.DataFrame:
    """Pairs of contents, by their numbers."""
    pairs = {"first": first, "second": second, "measure": measure}
    return pl.DataFrame(pairs, schema={"first": pl.Int64, "second": pl.Int64, "measure": pl.Float64}).with_columns(
        duplicate_rule=pl.lit(rule)
    )


def _near_pairs(
    documents: pl.LazyFrame, signed: pl.LazyFrame, contents: pl.DataFrame, settings: Deduplication, memory: Path
) -> pl.DataFrame:
    from khmer_assets.corpus.minhash import candidate_pairs

    content_of_row = np.full(signed.select(pl.len()).collect().item(), -1)
    content_of_row[contents["row"].to_numpy()] = np.arange(contents.height)
    with tempfile.TemporaryFile() as file:
        shape = (contents.height, settings.permutations)
        signatures = np.memmap(file, np.uint32, "w+", shape=shape) if contents.height else np.empty(shape, np.uint32)
        start = 0
        for batch in signed.select("signature").collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=True):
            numbers = content_of_row[start : start + batch.height]
            signatures[numbers[numbers >= 0]] = batch["signature"].to_numpy()[numbers >= 0]
            start += batch.height
        first, second = candidate_pairs(signatures, settings.jaccard)
    similarity = _remembered_similarities(documents, contents, first, second, settings.ngram, memory)
    alike = similarity >= settings.jaccard
    return _pairs(first[alike], second[alike], similarity[alike], "near_duplicate")


def _semantic_pairs(
    documents: pl.LazyFrame,
    contents: pl.DataFrame,
    near: pl.DataFrame,
    settings: Deduplication,
    vectors: "DBConnection",
) -> pl.DataFrame:
    """The pairs of near vectors whose texts and lengths agree too, and that MinHash has not found."""
    from khmer_assets.corpus import semantic

    numbers = contents.select("content_hash", "content", "characters")
    found = (
        semantic.neighbors(vectors, documents, contents, settings)
        .join(numbers, on="content_hash")
        .join(numbers, left_on="neighbor", right_on="content_hash", suffix="_neighbor")
        .select(
            first=pl.min_horizontal("content", "content_neighbor").cast(pl.Int64),
            second=pl.max_horizontal("content", "content_neighbor").cast(pl.Int64),
            ratio=pl.min_horizontal("characters", "characters_neighbor")
            / pl.max_horizontal("characters", "characters_neighbor"),
            measure="cosine",
        )
        .filter(pl.col("ratio") >= settings.semantic_length_ratio)
        .unique(["first", "second"])
        .join(near, on=["first", "second"], how="anti")
        .sort("first", "second")
    )
    first, second, measure = (found[column].to_numpy() for column in ("first", "second", "measure"))
    alike = _similarities(documents, contents, first, second, settings.ngram) >= settings.semantic_jaccard
    return _pairs(first[alike], second[alike], measure[alike], "semantic_duplicate")


def _remembered_similarities(
    documents: pl.LazyFrame,
    contents: pl.DataFrame,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    n: int,
    memory: Path,
) -> NDArray[np.float64]:
    """As `_similarities`, of which those that the last run measured are read from a file in the folder `memory`."""
    hashes = contents["content_hash"]
    pairs = pl.DataFrame({"first": hashes.gather(first), "second": hashes.gather(second)})
    file = memory / f"similarities-{n}.parquet"
    known = pl.read_parquet(file) if file.exists() else pairs.head(0).with_columns(similarity=pl.lit(0.0))
    pairs = pairs.join(known, on=["first", "second"], how="left", maintain_order="left")
    similarity = pairs["similarity"].to_numpy(writable=True)
    new = np.flatnonzero(pairs["similarity"].is_null())
    similarity[new] = _similarities(documents, contents, first[new], second[new], n)
    aside = file.with_suffix(".writing")
    pairs.with_columns(similarity=similarity).write_parquet(aside)
    aside.rename(file)
    return similarity


def _similarities(
    documents: pl.LazyFrame, contents: pl.DataFrame, first: NDArray[np.int64], second: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    """The Jaccard similarity of the texts of each pair of contents.

    The texts of all pairs may be too many for the memory. Contents that a chain of pairs links are compared together,
    as many such groups at once as there is room for, each time with the texts written aside for them.
    """
    from khmer_assets.corpus.ngrams import Texts, jaccards

    similarities = np.zeros(first.size)
    if not first.size:
        return similarities
    share = _shares(contents, first, second)
    wanted = contents.select("content_hash", "content", share=pl.Series(share)).filter(pl.col("share") >= 0)
    texts = documents.select("content_hash", "text").join(wanted.lazy(), on="content_hash")
    with tempfile.TemporaryDirectory() as folder:
        for number, own in enumerate(_by_share(texts, int(share.max()) + 1, Path(folder))):
            pairs = np.flatnonzero(share[first] == number)
            places = [np.searchsorted(own["content"].to_numpy(), side[pairs]) for side in (first, second)]
            own_texts = Texts.of(own["text"])
            with ThreadPoolExecutor(cores()) as threads:
                parts = (np.array_split(side, 8 * cores()) for side in places)
                measured = threads.map(partial(jaccards, own_texts, n=n), *parts)
                similarities[pairs] = np.concatenate(list(measured))
    return similarities


def _by_share(texts: pl.LazyFrame, shares: int, aside: Path) -> Iterator[pl.DataFrame]:
    """Each share's texts, once each, in the order of their contents."""
    if shares > 1:
        texts.sink_parquet(pl.PartitionBy(aside, key="share"), compression="lz4", row_group_size=ROWS_AT_ONCE // 10)
    for number in range(shares):
        own = pl.scan_parquet(aside / f"share={number}") if shares > 1 else texts
        yield own.select("content", "text").unique("content").sort("content").collect()


def _shares(contents: pl.DataFrame, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each content the number, from 0, of the share of the pairs that it belongs to; -1 without a pair."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(first.size, np.int8), (first, second)), shape=(contents.height, contents.height))
    groups, group = connected_components(links, directed=False)
    paired = np.zeros(contents.height, dtype=bool)
    paired[first] = paired[second] = True
    sizes = np.bincount(group[paired], weights=contents["bytes"].to_numpy()[paired], minlength=groups)
    share_of_group = (np.cumsum(sizes) - sizes) // BYTES_AT_ONCE
    return np.where(paired, np.unique(share_of_group[group], return_inverse=True)[1], -1)


def _verdicts(pairs: pl.DataFrame, contents: int) -> pl.DataFrame:
    """For each content the kept_content that stays for it (its own where it stays), duplicate_rule and measure."""
    both = pl.concat(
        [
            pairs,
            pairs.select("second", "first", "measure", "duplicate_rule").rename({"second": "first", "first": "second"}),
        ]
    )
    others = both.group_by("first").agg("second").sort(pl.col("second").list.len(), "first", descending=[True, False])
    gone: set[int] = set()
    for content, copies in others.select("first", "second").iter_rows():
        if content not in gone:
            gone.update(copies)
    removed = pl.Series("first", sorted(gone), dtype=pl.Int64)
    reasons = (
        both.join(removed.to_frame(), on="first", how="semi")
        .filter(~pl.col("second").is_in(removed.implode()))
        .sort("duplicate_rule", "measure", "second", descending=[False, True, False])
        .unique("first", keep="first", maintain_order=True)
    )
    return (
        pl.DataFrame({"content": np.arange(contents)})
        .join(reasons, left_on="content", right_on="first", how="left", maintain_order="left")
        .select(
            pl.col("content").cast(pl.UInt32),
            pl.coalesce("second", "content").cast(pl.UInt32).alias("kept_content"),
            "duplicate_rule",
            "measure",
        )
    )
