"""Where vectors are kept: a LanceDB database."""

from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    from lancedb.db import DBConnection


class VectorIndex(dg.ConfigurableResource):
    """A LanceDB database in the folder, or at the address, `path`."""

    path: str

    def connect(self) -> "DBConnection":
        """Open the database; it is made when there is none."""
        import lancedb

        return lancedb.connect(self.path)
