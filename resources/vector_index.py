"""Where vectors are kept: a LanceDB database, and how many rows are written to it."""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.db import DBConnection
    from lancedb.table import Table

ROWS_A_WRITE = 8_192
SECONDS_A_WRITE = 60.0


class VectorIndex(dg.ConfigurableResource):
    """A LanceDB database in the folder, or at the address, `path`."""

    path: str

    def connect(self) -> "DBConnection":
        """Open the database; it is made when there is none."""
        import lancedb

        return lancedb.connect(self.path)


def add_rows(table: "Table", batches: Iterable["pa.Table"]) -> None:
    """Add the rows in few writes, for each one makes files and a version of the table.

    What has taken long to make is written at once, so that it is not lost when the process is killed.
    """
    import pyarrow as pa

    held: list[pa.Table] = []
    since = time.monotonic()
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= ROWS_A_WRITE or time.monotonic() - since >= SECONDS_A_WRITE:
            table.add(pa.concat_tables(held))
            held, since = [], time.monotonic()
    if held:
        table.add(pa.concat_tables(held))
