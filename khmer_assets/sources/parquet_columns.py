"""The rows of a Parquet file, of which only the wanted columns are read."""

from collections.abc import Iterator
from typing import IO, Any

from khmer_assets.sources.rows import require_text_column

BATCH_ROWS = 1_000


def read_columns(stream: IO[bytes], wanted: set[str] | None, texts: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file with those of the wanted columns that it has; None: with all.

    Raises `MissingColumn` where it has none of the columns `texts`.
    """
    import pyarrow.parquet as pq

    # without pre_buffer a row group is read page by page, and not as a whole
    file = pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
    require_text_column(file.schema_arrow.names, texts)
    columns = [column for column in file.schema_arrow.names if wanted is None or column in wanted]
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
        yield from batch.to_pylist()
