"""Semantic duplicates: documents whose embeddings, texts and lengths are all close. The vectors are kept in LanceDB.

The embedder "hashing" counts character n-grams in a fixed number of dimensions and needs no download; any other name
is a sentence-transformers model, a folder or a hub name.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from khmer_assets.corpus.minhash import distinct_ngrams
from khmer_assets.corpus.ngrams import jaccard
from khmer_assets.recipe import Deduplication, digest_of

if TYPE_CHECKING:
    from lancedb.db import DBConnection
    from lancedb.table import Table

Embedder = Callable[[list[str]], NDArray[np.float32]]

HASHING = "hashing"
HASHING_DIMENSIONS = 256
HASHING_NGRAM = 3
BATCH = 8  # chunks that a model embeds at once
DOCUMENTS_AT_ONCE = 256
NEIGHBORS = 16
# With fewer vectors an exact search of all takes less time than building the index.
INDEX_FROM = 20_000


@cache
def embedder(name: str) -> Embedder:
    """A function from n texts to an array of n rows, each of length 1, or 0 for a text too short to tell."""
    if name == HASHING:
        from sklearn.feature_extraction.text import HashingVectorizer

        vectorizer = HashingVectorizer(
            analyzer="char", ngram_range=(HASHING_NGRAM, HASHING_NGRAM), n_features=HASHING_DIMENSIONS, dtype=np.float32
        )
        return lambda texts: vectorizer.transform(texts).toarray()
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name)
    # E5 was trained with a prefix for each side; for similarity between equals its authors advise this one
    prefix = "query: " if "e5" in name.lower() else ""

    def embed(texts: list[str]) -> NDArray[np.float32]:
        prefixed = [prefix + text for text in texts]
        return model.encode(prefixed, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

    return embed


def embed_documents(texts: list[str], settings: Deduplication) -> NDArray[np.float32]:
    """A row for each text: the mean of its chunks' vectors, normalized to length 1 (0 for a text too short to tell)."""
    size = settings.chunk_characters
    chunks = [[text[start : start + size] for start in range(0, len(text), size)] or [""] for text in texts]
    vectors = embedder(settings.embedder)([chunk for document in chunks for chunk in document])
    starts = np.cumsum([0, *(len(document) for document in chunks[:-1])])
    sums = np.add.reduceat(vectors, starts, axis=0)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def update_table(connection: "DBConnection", documents: pl.DataFrame, settings: Deduplication) -> "Table":
    """The LanceDB table of this embedder, brought to hold exactly the given contents.

    `documents`: content_hash (each once), source, language, text. The table: content_hash, source, length
    (characters), language, vector. Only contents that the table did not hold are embedded, and are written as they
    come, so that a stopped run goes on where it was.
    """
    name = (
        f"documents_{digest_of([settings.embedder, settings.chunk_characters, HASHING_DIMENSIONS, HASHING_NGRAM])[:16]}"
    )
    table = connection.open_table(name) if name in connection.list_tables().tables else None
    held = _hashes(table) if table is not None else set()
    gone = sorted(held.difference(documents["content_hash"]))
    new = documents.filter(~pl.col("content_hash").is_in(list(held))).sort(pl.col("text").str.len_chars())
    for start in range(0, len(gone), 500):
        assert table is not None  # it held them
        table.delete(
            "content_hash IN ({})".format(", ".join(f"'{content_hash}'" for content_hash in gone[start : start + 500]))
        )
    for batch in new.iter_slices(DOCUMENTS_AT_ONCE):
        vectors = embed_documents(batch["text"].to_list(), settings)
        rows = batch.select(
            "content_hash",
            "source",
            pl.col("text").str.len_chars().alias("length"),
            "language",
            pl.Series("vector", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])),
        ).to_arrow()
        if table is None:
            table = connection.create_table(name, rows)
        else:
            table.add(rows)
    if table is None:
        raise ValueError("there are no documents to embed")
    if gone or not new.is_empty():
        table.optimize()
        if table.count_rows() >= INDEX_FROM:
            from lancedb.index import HnswSq

            table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=1), replace=True)
    return table


def neighbors(table: "Table", settings: Deduplication) -> pl.DataFrame:
    """The pairs of near vectors: content_hash, neighbor (a content hash too), cosine, at or above the threshold.

    Each content's `NEIGHBORS` nearest are looked at: exactly in a small table, by the HNSW index in a large one.
    """
    rows = pl.DataFrame(table.to_arrow().select(["content_hash", "vector"])).sort("content_hash")
    exact = rows.height < INDEX_FROM
    found = []
    for batch in rows.iter_slices(DOCUMENTS_AT_ONCE):
        search = table.search(list(batch["vector"].to_numpy()), vector_column_name="vector").distance_type("cosine")
        search = search.bypass_vector_index() if exact else search.ef(settings.hnsw_ef)
        nearest = pl.DataFrame(search.select(["content_hash", "_distance"]).limit(NEIGHBORS + 1).to_arrow())
        if "query_index" not in nearest.columns:  # LanceDB leaves it out for a single query
            nearest = nearest.with_columns(query_index=pl.lit(0))
        found.append(
            nearest.select(
                batch["content_hash"].gather(nearest["query_index"]),
                pl.col("content_hash").alias("neighbor"),
                (1 - pl.col("_distance")).cast(pl.Float64).alias("cosine"),
            ).filter(
                pl.col("content_hash") != pl.col("neighbor"),
                pl.col("cosine").fill_nan(None) >= settings.semantic_cosine,
            )
        )
    return pl.concat(found).sort("content_hash", "cosine", "neighbor", descending=[False, True, False])


def texts_agree(first: str, second: str, settings: Deduplication) -> bool:
    """Whether two texts are as close in length and in their character n-grams as semantic duplicates must be."""
    shorter, longer = sorted((len(first), len(second)))
    if shorter < settings.semantic_length_ratio * longer:
        return False
    ngrams = (distinct_ngrams(text, settings.ngram) for text in (first, second))
    return jaccard(*ngrams) >= settings.semantic_jaccard


def _hashes(table: "Table") -> set[str]:
    return set(table.search().select(["content_hash"]).to_arrow()["content_hash"].to_pylist())
