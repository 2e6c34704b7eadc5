"""Documents in one spelling: the rules of `khmer_assets.khmer.normalization`, applied to every text and title."""

from collections import Counter
from typing import Any

import polars as pl

from khmer_assets.corpus.documents import SET_ASIDE, content_hash
from khmer_assets.khmer.normalization import normalize
from khmer_assets.recipe import Normalization

_NORMALIZED = pl.Struct({"title": pl.String, "text": pl.String, "content_hash": pl.String})


def normalize_documents(documents: pl.LazyFrame, settings: Normalization, counts: list[dict[str, int]]) -> pl.LazyFrame:
    """`documents` with canonical title and text, a new content hash, and rule, measure and reason.

    A document of which nothing is left is set aside (empty_after_normalization). When the frame is computed, every
    batch appends to `counts` how often each rule of the normalization changed a text.
    """

    def normalized(batch: pl.Series) -> pl.Series:
        counted: Counter[str] = Counter()
        rows: list[dict[str, Any]] = []
        for row in batch:
            text, rules = normalize(row["text"], settings)
            counted.update(rules)
            title = normalize(row["title"], settings)[0] if row["title"] else None
            rows.append({"title": title, "text": text, "content_hash": content_hash(text)})
        counts.append(dict(counted))
        return pl.Series(rows, dtype=_NORMALIZED)

    columns = [*documents.collect_schema(), *SET_ASIDE]
    empty = pl.col("text").str.strip_chars() == ""
    return (
        documents.with_columns(
            pl.struct("title", "text")
            .map_batches(normalized, return_dtype=_NORMALIZED, is_elementwise=True)
            .alias("_new")
        )
        .drop("title", "text", "content_hash")
        .unnest("_new")
        .with_columns(
            rule=pl.when(empty).then(pl.lit("empty_after_normalization")),
            measure=pl.lit(None, dtype=pl.Float64),
            reason=pl.when(empty).then(
                pl.lit("nothing is left but spaces when characters that nobody sees are removed")
            ),
        )
        .select(columns)
    )
