"""The payload that refreshes a source of a kind that fetches: adds to its collection and writes all rows of it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection
from khmer_assets.sources.reading import batches, kind_of
from khmer_assets.sources.rows import SourceError
from resources.payload import PayloadRun, Refusal

ROWS = "rows.parquet"


class Spec(BaseModel):
    """`base`: the catalogue's folder. `collection`: the SQLite file of what was fetched so far."""

    source: Source
    base: Path
    collection: Path


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Fetch what is new, then write every row that was ever collected to `rows.parquet`; return the kind's figures."""
    with Collection(spec.collection) as collection:
        try:
            figures = kind_of(spec.source).collect(spec.source, spec.base, collection, run.log)
        except (SourceError, RecipeError) as error:
            raise Refusal(str(error)) from None
        writer = None
        for batch in batches(spec.source, collection.rows()):
            table: pa.Table = batch.to_arrow()
            writer = writer or pq.ParquetWriter(run.output / ROWS, table.schema)
            writer.write_table(table)
        assert writer is not None  # there is always one batch, if an empty one
        writer.close()
        return {**figures, **{f"collection_{name}": count for name, count in collection.counts().items()}}
