"""The columns of a document, and how a row is set aside. What changes or judges documents stands in its own module."""

import hashlib

import polars as pl

# `language`: ISO 639-3, or null. `published_at`: ISO 8601, or null. `content_hash`: SHA-256 of the text in UTF-8, hex.
DOCUMENT = pl.Schema(
    {
        "id": pl.String,
        "source": pl.String,
        "title": pl.String,
        "text": pl.String,
        "language": pl.String,
        "category": pl.String,
        "url": pl.String,
        "published_at": pl.String,
        "license": pl.String,
        "content_hash": pl.String,
    }
)

# What sets a row aside: the rule's name, the measure that it compared (or null), a sentence for people. A row without
# a rule is kept.
SET_ASIDE = pl.Schema({"rule": pl.String, "measure": pl.Float64, "reason": pl.String})

ALL_COLUMNS = pl.Schema({**DOCUMENT, **SET_ASIDE})


def content_hash(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def kept(documents: pl.LazyFrame) -> pl.LazyFrame:
    """The rows that no rule has set aside, without the three columns that would say so."""
    return documents.filter(pl.col("rule").is_null()).drop(*SET_ASIDE)
