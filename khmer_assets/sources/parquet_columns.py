"""The rows of a Parquet file, of which only the wanted columns are read."""

from collections.abc import Iterator
from typing import IO, Any

from khmer_assets.sources.rows import require_text_column

BATCH_ROWS = 1_000
BATCH_BYTES = 64_000_000


def read_columns(stream: IO[bytes], wanted: set[str] | None, texts: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file with those of the wanted columns that it has; None: with all.

    About `BATCH_BYTES` are unpacked at a time, or a page. Raises `MissingColumn` where it has none of the columns
    `texts`.
    """
    import pyarrow.parquet as pq
    import pyarrow.types as types

    # without pre_buffer a row group is read page by page, and not as a whole
    how: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20}
    found = pq.ParquetFile(stream, **how).schema_arrow
    require_text_column(found.names, texts)
    fields = [field for field in found if wanted is None or field.name in wanted]
    columns = [field.name for field in fields]
    # kept as a dictionary, a text that thousands of rows share is in memory once, as it is in the file
    strings = [field.name for field in fields if types.is_string(field.type) or types.is_large_string(field.type)]
    file = pq.ParquetFile(stream, read_dictionary=strings, **how)
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        places = [group.column(place) for place in range(group.num_columns)]
        size = sum(place.total_uncompressed_size for place in places if place.path_in_schema.split(".")[0] in columns)
        rows = max(1, min(BATCH_ROWS, BATCH_BYTES * group.num_rows // max(1, size)))
        for batch in file.iter_batches(batch_size=rows, row_groups=[number], columns=columns):
            for values in zip(*map(batch.column, columns), strict=True):
                yield {name: value.as_py() for name, value in zip(columns, values, strict=True)}
