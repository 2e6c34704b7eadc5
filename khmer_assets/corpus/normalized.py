"""Documents in one spelling: the rules of `khmer_assets.khmer.normalization`, applied to every text and title."""

import polars as pl

from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.sources.documents import SET_ASIDE, content_hash

# How often each rule of the normalization changed the document's text; null where it was canonical.
CHANGES = pl.List(pl.Struct({"rule": pl.String, "changes": pl.UInt32}))


def normalize_batch(batch: pl.DataFrame, settings: Normalization) -> pl.DataFrame:
    """`batch` with canonical title and text, a new content hash, `changes`, and rule, measure and reason.

    A document of which nothing is left is set aside (empty_after_normalization).
    """
    texts, counts = [], []
    for text in batch["text"]:
        normalized, counted = normalize(text, settings)
        texts.append(normalized)
        counts.append([{"rule": rule, "changes": changes} for rule, changes in counted.items()] or None)
    titles = [normalize(title, settings)[0] if title else None for title in batch["title"]]
    empty = pl.col("text").str.strip_chars() == ""
    return batch.with_columns(
        title=pl.Series(titles, dtype=pl.String),
        text=pl.Series(texts, dtype=pl.String),
        content_hash=pl.Series([content_hash(text) for text in texts], dtype=pl.String),
        changes=pl.Series(counts, dtype=CHANGES),
    ).with_columns(
        rule=pl.when(empty).then(pl.lit("empty_after_normalization")),
        measure=pl.lit(None, dtype=SET_ASIDE["measure"]),
        reason=pl.when(empty).then(pl.lit("nothing is left but spaces when characters that nobody sees are removed")),
    )


def changes_by_rule(normalized: pl.LazyFrame) -> pl.DataFrame:
    """How often each rule changed a text (rule, documents, changes), the most frequent first."""
    return (
        normalized.select(pl.col("changes").drop_nulls())
        .explode("changes")
        .unnest("changes")
        .group_by("rule")
        .agg(documents=pl.len(), changes=pl.col("changes").sum())
        .sort("changes", "rule", descending=[True, False])
        .collect()
    )
