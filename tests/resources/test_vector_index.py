"""Many small tables of rows become few writes, and what took long is written at once."""

import pyarrow as pa

from resources import vector_index
from resources.vector_index import VectorIndex, add_rows


def rows(first: int, count: int) -> pa.Table:
    return pa.table({"number": pa.array(range(first, first + count), pa.int64())})


def test_rows_are_added_in_few_writes(tmp_path):
    table = VectorIndex(path=str(tmp_path)).connect().create_table("numbers", schema=rows(0, 0).schema)
    add_rows(table, (rows(first, 256) for first in range(0, 20_480, 256)))
    assert sorted(table.to_arrow()["number"].to_pylist()) == list(range(20_480))
    assert table.version <= 4, "the new table and three writes"
    add_rows(table, [])


def test_what_took_long_to_make_is_not_held_back(tmp_path, monkeypatch):
    monkeypatch.setattr(vector_index, "SECONDS_A_WRITE", 0.0)
    table = VectorIndex(path=str(tmp_path)).connect().create_table("numbers", schema=rows(0, 0).schema)

    def made():
        yield rows(0, 3)
        assert table.count_rows() == 3
        yield rows(3, 3)

    add_rows(table, made())
    assert table.count_rows() == 6
