"""What the label model says of chats that nobody has judged."""

import polars as pl

from khmer_assets.instructions.chats import said
from khmer_assets.labels.labelled import Keep, Weights, label_batch
from khmer_assets.labels.model import LabelModel
from khmer_assets.sources.documents import DOCUMENT

SAFE = "safe"


def scored(chats: pl.DataFrame, model: LabelModel) -> pl.DataFrame:
    """Chats with quality, label, toxicity and tags where these were null or empty: the label model's verdict on what is
    said, which it has learned on documents. What was judged before stays."""
    texts = said(chats.with_columns(split=pl.lit("")))["text"]
    documents = texts.to_frame().with_columns(
        pl.lit(None, kind).alias(name) for name, kind in DOCUMENT.items() if name != "text"
    )
    found = label_batch(documents, model, Keep(), Weights()).select(
        found_quality=pl.col("quality").cast(pl.Float64),
        found_label="validity",
        found_toxicity=pl.when("safe").then(pl.lit(SAFE)).otherwise(pl.col("toxicity").list.first()),
        found_tags=pl.col("topics").fill_null([]),
    )
    return (
        pl.concat([chats, found], how="horizontal")
        .with_columns(
            quality=pl.coalesce("quality", "found_quality"),
            label=pl.coalesce("label", "found_label"),
            toxicity=pl.coalesce("toxicity", "found_toxicity"),
            tags=pl.when(pl.col("tags").list.len() > 0).then("tags").otherwise("found_tags"),
        )
        .select(chats.columns)
    )
