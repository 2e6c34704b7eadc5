"""Which documents are copies of one another, over all sources, and which copy stays.

A copy is removed only for a document that stays and that it is truly similar to. So contents are gone through from
the best to the least: the longest text first, then the order of the catalogue, then the id. Each is compared with
those that stay already, and stays itself when it is like none of them. A chain of copies, each like the next and the
last unlike the first, therefore leaves every document that no kept one stands for.
"""

from typing import TYPE_CHECKING, Any

import polars as pl

from khmer_assets.corpus import semantic
from khmer_assets.corpus.documents import SET_ASIDE
from khmer_assets.corpus.minhash import NearDuplicates
from khmer_assets.recipe import Deduplication

if TYPE_CHECKING:
    from lancedb.db import DBConnection

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


def find_duplicates(
    documents: dict[str, pl.LazyFrame], settings: Deduplication, vectors: "DBConnection"
) -> pl.LazyFrame:
    """One row for each document of all sources (by name, in the catalogue's order), with the columns of `INDEX`.

    `cluster` numbers the documents that stay, `kept_id` is the one that stays of the cluster (its own, where
    `duplicate_rule` is null). Rules, tried in this order, with their measure:

    | duplicate_rule | measure |
    |---|---|
    | exact_duplicate | 1: the content hashes are equal |
    | near_duplicate | Jaccard similarity of the character n-grams, found by MinHash |
    | semantic_duplicate | cosine of the embeddings |
    """
    columns = ["id", "source", "content_hash", "language", "text"]
    everything = pl.concat(
        [frame.select(columns).with_columns(_place=pl.lit(place)) for place, frame in enumerate(documents.values())]
    )
    ordered = everything.sort(pl.col("text").str.len_chars(), "_place", "id", descending=[True, False, False]).collect(
        engine="streaming"
    )
    contents = ordered.unique("content_hash", keep="first", maintain_order=True)
    verdicts = _kept_contents(contents, settings, vectors)
    kept = contents.select(kept_hash="content_hash", kept_id="id")
    index = (
        ordered.drop("text", "language")
        .join(verdicts, on="content_hash", how="left", maintain_order="left")
        .join(kept, on="kept_hash", how="left", maintain_order="left")
        .with_columns(
            duplicate_rule=pl.when(pl.col("duplicate_rule").is_null() & (pl.col("id") != pl.col("kept_id")))
            .then(pl.lit("exact_duplicate"))
            .otherwise("duplicate_rule"),
        )
        .with_columns(
            measure=pl.when(duplicate_rule="exact_duplicate").then(1.0).otherwise("measure"),
        )
    )
    sentence: Any = pl.when(duplicate_rule="exact_duplicate").then(
        pl.format("has the same text as {}, which stays", "kept_id")
    )
    for rule, measure in (("near_duplicate", "Jaccard similarity"), ("semantic_duplicate", "cosine")):
        sentence = sentence.when(duplicate_rule=rule).then(
            pl.format(f"{measure} {{}} to {{}}, which stays", pl.col("measure").round(3), "kept_id")
        )
    return index.with_columns(reason=sentence).sort("_place", "id").select(*INDEX).match_to_schema(INDEX).lazy()


def remove_duplicates(documents: pl.LazyFrame, index: pl.LazyFrame) -> pl.LazyFrame:
    """One source's `documents` with rule, measure and reason from the `index` of `find_duplicates`."""
    columns = [*documents.collect_schema(), *SET_ASIDE]
    verdicts = index.select("id", "measure", "reason", rule="duplicate_rule")
    return documents.join(verdicts, on="id", how="left", maintain_order="left").select(columns)


def _kept_contents(contents: pl.DataFrame, settings: Deduplication, vectors: "DBConnection") -> pl.DataFrame:
    """For each content hash the kept_hash and cluster of what stays for it, and the duplicate_rule and measure."""
    close: dict[str, list[tuple[str, float]]] = {}
    if contents.height:
        pairs = semantic.neighbors(semantic.update_table(vectors, contents, settings), settings)
        for content_hash, neighbor, cosine in pairs.iter_rows():
            close.setdefault(content_hash, []).append((neighbor, cosine))
    near = NearDuplicates(settings)
    kept: list[str] = []
    kept_texts: dict[str, str] = {}
    verdicts = []
    for content_hash, text in contents.select("content_hash", "text").iter_rows():
        signature = near.signature(text)
        rule, measure, kept_hash = None, None, content_hash
        if found := near.most_similar(text, signature):
            rule, measure, kept_hash = "near_duplicate", found[1], kept[found[0]]
        else:
            for neighbor, cosine in close.get(content_hash, []):
                if neighbor in kept_texts and semantic.texts_agree(text, kept_texts[neighbor], settings):
                    rule, measure, kept_hash = "semantic_duplicate", cosine, neighbor
                    break
        if rule is None:
            near.add(text, signature)
            kept.append(content_hash)
            kept_texts[content_hash] = text
        verdicts.append((content_hash, kept_hash, rule, measure))
    cluster = {content_hash: number for number, content_hash in enumerate(kept)}
    return pl.DataFrame(
        [(*verdict, cluster[verdict[1]]) for verdict in verdicts],
        schema={
            "content_hash": pl.String,
            "kept_hash": pl.String,
            "duplicate_rule": pl.String,
            "measure": pl.Float64,
            "cluster": pl.UInt32,
        },
        orient="row",
    )
