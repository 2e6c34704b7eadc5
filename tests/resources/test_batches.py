"""Rows are mapped in batches: in order, each batch once, and the same wherever it is computed."""

import hashlib
import os
import uuid
from pathlib import Path

import polars as pl
import pytest

from resources import batches
from resources.batches import Batches


def rows(count: int, prefix: str = "អក្សរ") -> pl.DataFrame:
    texts = [f"{prefix} {number}" for number in range(count)]
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    columns = {"id": [str(number) for number in range(count)], "text": texts, "content_hash": hashes}
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def longer(batch: pl.DataFrame) -> pl.DataFrame:
    return batch.with_columns(pl.col("text") + "។", process=os.getpid())


class Counted:
    """Counts the rows that it maps, and breaks when it has mapped more than `most`."""

    def __init__(self, most: int = 10**9):
        self.most = most
        self.rows = 0

    def __call__(self, batch: pl.DataFrame) -> pl.DataFrame:
        self.rows += batch.height
        if self.rows > self.most:
            raise RuntimeError("killed")
        return longer(batch)


class Heavy:
    """Tells in a folder how often it was sent to another process."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __setstate__(self, state: dict) -> None:
        self.__dict__ = state
        (self.folder / uuid.uuid4().hex).touch()

    def __call__(self, batch: pl.DataFrame) -> pl.DataFrame:
        return longer(batch)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(batches, "ROWS", 16)
    monkeypatch.setattr(batches, "MAX_ROWS", 64)
    monkeypatch.setattr(batches, "ROWS_READ", 128)


@pytest.fixture
def here(tmp_path) -> Batches:
    return Batches(home=str(tmp_path))


def mapped(where: Batches, frame: pl.DataFrame, function=longer, version: str = "1", **options) -> pl.DataFrame:
    return where.map("corpus", version, function, frame.lazy(), **options).collect()


@pytest.mark.parametrize("count", [0, 1, 15, 1000])
def test_every_row_is_mapped_in_its_order(here, count):
    frame = rows(count)
    assert mapped(here, frame, workers="threads").drop("process").equals(longer(frame).drop("process"))


def test_many_batches_are_shared_among_processes(here, monkeypatch):
    monkeypatch.setattr(batches, "cores", lambda: 2)
    frame = rows(300)
    found = mapped(here, frame)
    assert found.drop("process").equals(longer(frame).drop("process"))
    assert os.getpid() not in found["process"]


def test_what_a_function_holds_is_sent_to_each_process_once(here, monkeypatch, tmp_path):
    monkeypatch.setattr(batches, "cores", lambda: 2)
    (tmp_path / "sent").mkdir()
    assert mapped(here, rows(300), Heavy(tmp_path / "sent")).height == 300
    assert 1 <= len(list((tmp_path / "sent").iterdir())) <= 2


def test_few_batches_stay_in_this_process(here):
    assert mapped(here, rows(20))["process"].unique().to_list() == [os.getpid()]


def test_a_run_that_broke_goes_on_where_it_was(here):
    frame = rows(500)
    broken, second = Counted(most=300), Counted()
    with pytest.raises(RuntimeError, match="killed"):
        mapped(here, frame, broken, workers="threads")
    found = mapped(here, frame, second, workers="threads")
    assert found.height == 500
    assert 0 < second.rows < 500


def test_only_batches_with_new_rows_are_computed_again(here):
    frame = rows(1000)
    mapped(here, frame, workers="threads")
    for grown in (
        pl.concat([frame, rows(10, "ថ្មី")]),
        pl.concat([frame.head(500), rows(10, "កណ្តាល"), frame.tail(500)]),
        frame.tail(995),
    ):
        again = Counted()
        found = mapped(here, grown, again, workers="threads")
        assert found.drop("process").equals(longer(grown).drop("process"))
        assert 0 < again.rows < 150


def test_a_change_beside_the_text_counts_too(here):
    frame = rows(50)
    mapped(here, frame)
    renamed = frame.with_columns(pl.col("id") + "x")
    assert mapped(here, renamed)["id"].to_list() == renamed["id"].to_list()


def test_another_version_computes_everything_again_and_forgets_the_old_results(here, tmp_path):
    frame = rows(500)
    mapped(here, frame, workers="threads")
    files = set(Path(tmp_path, "batches", "corpus").iterdir())
    again, other_run = Counted(), Batches(home=str(tmp_path))
    mapped(other_run, frame, again, version="2", workers="threads")
    assert again.rows == 500
    assert files < set(Path(tmp_path, "batches", "corpus").iterdir()), "the first run may still read them"
    for run in (here, other_run):
        run.teardown_after_execution(None)
    mapped(here, frame, version="2", workers="threads")
    assert not {file for file in files if file.suffix == ".arrow"} & set(Path(tmp_path, "batches", "corpus").iterdir())


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_gives_the_same(here, tmp_path):
    from ray.cluster_utils import Cluster

    frame = rows(600)
    local = mapped(here, frame, workers="threads")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        far = Batches(home=str(tmp_path / "far"), ray_address=cluster.address)
        found = mapped(far, frame)
    finally:
        cluster.shutdown()
    assert found.drop("process").equals(local.drop("process"))
    assert found["process"].n_unique() >= 2
    assert os.getpid() not in found["process"]
