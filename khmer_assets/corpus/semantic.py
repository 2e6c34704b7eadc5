"""Semantic duplicates: documents whose embeddings, texts and lengths are all close. The vectors are kept in LanceDB.

The embedder "hashing" counts character n-grams in a fixed number of dimensions and needs no download; any other name
is a sentence-transformers model, a folder or a hub name.
"""

import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from khmer_assets.foundation.settings import PositiveInt, Ratio, Settings, digest_of
from resources.vector_index import add_rows

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.db import DBConnection
    from lancedb.table import Table

Embedder = Callable[[list[str]], NDArray[np.float32]]

HASHING = "hashing"
TABLES_VERSION = 2  # raised when the tables' columns change: those of an earlier program are left alone
HASHING_DIMENSIONS = 256
HASHING_NGRAM = 3
BATCH = 8  # chunks that a model embeds at once
DOCUMENTS_AT_ONCE = 256
NEIGHBORS = 16
# With fewer vectors an exact search of all takes less time than building the index.
INDEX_FROM = 20_000


class SemanticSearch(Settings):
    """`embedder`: "hashing", a sentence-transformers model, or null for no search. A text is cut into chunks of
    `chunk_characters`. Documents are compared whose cosine reaches `semantic_cosine`; `hnsw_ef` is how widely the index
    looks for them."""

    embedder: str | None = HASHING
    chunk_characters: PositiveInt = 512
    semantic_cosine: Ratio = 0.97
    hnsw_ef: PositiveInt = 96


@cache
def embedder(name: str) -> Embedder:
    """A function from n texts to an array of n rows, each of length 1, or 0 for a text too short to tell."""
    if name == HASHING:
        from khmer_assets.corpus.ngrams import Texts, hashed_counts

        def count(texts: list[str]) -> NDArray[np.float32]:
            return _of_length_one(hashed_counts(Texts.of(pl.Series(texts)), HASHING_NGRAM, HASHING_DIMENSIONS))

        return count
    if sys.modules.get("sklearn", ...) is None:  # a payload does without it, sentence-transformers does not
        del sys.modules["sklearn"]
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name)
    # E5 was trained with a prefix for each side; for similarity between equals its authors advise this one
    prefix = "query: " if "e5" in name.lower() else ""

    def embed(texts: list[str]) -> NDArray[np.float32]:
        prefixed = [prefix + text for text in texts]
        return model.encode(prefixed, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

    return embed


def embed_documents(texts: list[str], settings: SemanticSearch) -> NDArray[np.float32]:
    """A row for each text: the mean of its chunks' vectors, normalized to length 1 (0 for a text too short to tell)."""
    size = settings.chunk_characters
    chunks = [[text[start : start + size] for start in range(0, len(text), size)] or [""] for text in texts]
    vectors = embedder(settings.embedder)([chunk for document in chunks for chunk in document])
    starts = np.cumsum([0, *(len(document) for document in chunks[:-1])])
    return _of_length_one(np.add.reduceat(vectors, starts, axis=0))


def _of_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32)


def neighbors(
    connection: "DBConnection", documents: pl.LazyFrame, contents: pl.DataFrame, settings: SemanticSearch
) -> pl.DataFrame:
    """The pairs of near vectors: content_hash, neighbor (a content hash too), cosine, at or above the threshold.

    `documents`: content_hash and text; `contents`: content_hash (each once), source, language, characters. LanceDB
    keeps the vectors (content_hash, source, length in characters, language, vector) and each content's nearest: only
    contents that were not there before are embedded and searched for. Both are written as they come, so that a
    stopped run goes on where it was. A content's `NEIGHBORS` nearest are looked at: exactly in a small table, by the
    HNSW index in a large one.
    """
    table = _update_vectors(connection, documents, contents, settings)
    return _update_neighbors(connection, table, contents, settings)


def _update_vectors(
    connection: "DBConnection", documents: pl.LazyFrame, contents: pl.DataFrame, settings: SemanticSearch
) -> "Table":
    """The table of this embedder's vectors, brought to hold exactly the given contents."""
    import pyarrow as pa

    dimensions = embed_documents([""], settings).shape[1]
    schema = pa.schema(
        {
            "content_hash": pa.string(),
            "source": pa.string(),
            "length": pa.uint32(),
            "language": pa.string(),
            "vector": pa.list_(pa.float32(), dimensions),
        }
    )
    table = connection.create_table(f"documents_{_version(settings)}", schema=schema, exist_ok=True)
    new = _without_gone(table, contents)
    if new.is_empty():
        return table
    columns = ["number", "content_hash", "source", "language", "length"]
    of_new = documents.select("content_hash", "text").join(
        new.with_row_index("number").rename({"characters": "length"}).select(columns).lazy(), on="content_hash"
    )
    embedded = np.zeros(new.height, dtype=bool)

    def vectors_of_new() -> Iterator["pa.Table"]:
        for batch in of_new.collect_batches(chunk_size=DOCUMENTS_AT_ONCE):
            different = batch.unique("number", keep="first", maintain_order=True)
            fresh = different.filter(~pl.Series(embedded[different["number"].to_numpy()]))
            embedded[fresh["number"].to_numpy()] = True
            if fresh.is_empty():
                continue
            vectors = embed_documents(fresh["text"].to_list(), settings)
            rows = fresh.with_columns(vector=pl.Series(vectors, dtype=pl.Array(pl.Float32, dimensions)))
            yield rows.select(schema.names).to_arrow().cast(schema)

    add_rows(table, vectors_of_new())
    table.optimize()
    if table.count_rows() >= INDEX_FROM and not table.list_indices():
        from lancedb.index import HnswSq

        table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=1))
    return table


def _update_neighbors(
    connection: "DBConnection", table: "Table", contents: pl.DataFrame, settings: SemanticSearch
) -> pl.DataFrame:
    import pyarrow as pa

    schema = pa.schema(
        {"content_hash": pa.string(), "neighbor": pa.list_(pa.string()), "cosine": pa.list_(pa.float64())}
    )
    version = digest_of([_version(settings), settings.semantic_cosine, settings.hnsw_ef])[:16]
    found = connection.create_table(f"neighbors_{version}", schema=schema, exist_ok=True)
    new = _without_gone(found, contents)["content_hash"].sort()
    exact = table.count_rows() < INDEX_FROM

    def nearest_of_new() -> Iterator["pa.Table"]:
        for batch in table.search().select(["content_hash", "vector"]).to_batches(DOCUMENTS_AT_ONCE):
            rows = pl.DataFrame(batch)
            rows = rows.filter(_are_in(rows["content_hash"], new))
            if rows.is_empty():
                continue
            search = table.search(list(rows["vector"].to_numpy()), vector_column_name="vector").distance_type("cosine")
            search = search.bypass_vector_index() if exact else search.ef(settings.hnsw_ef)
            nearest = pl.DataFrame(search.select(["content_hash", "_distance"]).limit(NEIGHBORS + 1).to_arrow())
            if "query_index" not in nearest.columns:  # LanceDB leaves it out for a single query
                nearest = nearest.with_columns(query_index=pl.lit(0))
            close = (
                nearest.select(
                    rows["content_hash"].gather(nearest["query_index"]),
                    neighbor="content_hash",
                    cosine=(1 - pl.col("_distance")).cast(pl.Float64),
                )
                .filter(
                    pl.col("content_hash") != pl.col("neighbor"),
                    pl.col("cosine").fill_nan(None) >= settings.semantic_cosine,
                )
                .sort("content_hash", "cosine", "neighbor", descending=[False, True, False])
                .group_by("content_hash", maintain_order=True)
                .all()
            )
            yield rows.select("content_hash").join(close, on="content_hash", how="left").to_arrow().cast(schema)

    if len(new):
        add_rows(found, nearest_of_new())
    rows = pl.DataFrame(found.to_arrow())
    return rows.explode("neighbor", "cosine").drop_nulls().sort("content_hash", "cosine", descending=[False, True])


def _version(settings: SemanticSearch) -> str:
    hashing = (HASHING_DIMENSIONS, HASHING_NGRAM)
    return digest_of([TABLES_VERSION, settings.embedder, settings.chunk_characters, *hashing])[:16]


def _without_gone(table: "Table", contents: pl.DataFrame) -> pl.DataFrame:
    """Delete the rows of contents that are no more; return the contents that the table does not hold."""
    held = pl.Series(table.search().select(["content_hash"]).to_arrow()["content_hash"], dtype=pl.String)
    gone = held.filter(~held.is_in(contents["content_hash"].implode()))
    for names in gone.to_frame().iter_slices(DOCUMENTS_AT_ONCE):
        table.delete(_condition(names.to_series().to_list()))
    return contents.filter(~pl.col("content_hash").is_in(held.implode()))


def _are_in(names: pl.Series, ordered: pl.Series) -> pl.Series:
    """Which of a few names are among many that are sorted, without a table of the many."""
    return ordered.gather(ordered.search_sorted(names).clip(upper_bound=len(ordered) - 1)) == names


def _condition(names: list[str]) -> str:
    return "content_hash IN ({})".format(", ".join(f"'{name}'" for name in names))
