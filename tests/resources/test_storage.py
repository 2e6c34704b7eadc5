"""The I/O managers: what is committed is whole, versions are digests, rows set aside stand beside the others."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from khmer_assets.foundation.files import SCRATCH, digest_of_folder
from khmer_assets.foundation.home import PROJECT
from resources.storage import FoldersIOManager, FramesIOManager, MissingArtifact, Store

SOURCES = dg.StaticPartitionsDefinition(["news", "poems"])


@dg.asset(partitions_def=SOURCES, io_manager_key="frames")
def lines(context: dg.AssetExecutionContext) -> pl.LazyFrame:
    return pl.LazyFrame(
        {
            "text": [f"ផ្ការីក {context.partition_key}", "x"],
            "rule": [None, "too_short"],
            "measure": [None, 1.0],
            "reason": [None, "1 character is less than 3"],
        },
        schema={"text": pl.String, "rule": pl.String, "measure": pl.Float64, "reason": pl.String},
    )


@dg.asset(io_manager_key="frames")
def joined(lines: dict[str, pl.LazyFrame]) -> pl.LazyFrame:
    return pl.concat(lines.values())


@dg.asset(io_manager_key="folders")
def book(scratch: dg.ResourceParam[str], joined: Path) -> Path:
    folder = Path(scratch) / "book"
    folder.mkdir()
    (folder / "book.txt").write_text("\n".join(pl.read_parquet(joined / "data.parquet")["text"]))
    return folder


@pytest.fixture
def resources(tmp_path: Path) -> dict[str, object]:
    storage = {"root": str(tmp_path / "store"), "cache": str(tmp_path / "cache")}
    return {
        "frames": FramesIOManager(**storage),
        "folders": FoldersIOManager(**storage),
        "scratch": dg.ResourceDefinition.hardcoded_resource(str(tmp_path)),
    }


def materialize(assets: list[dg.AssetsDefinition], resources: dict[str, object], **kwargs) -> dg.ExecuteInProcessResult:
    return dg.materialize(assets, resources=resources, **kwargs)


def test_frames_and_folders_flow_from_asset_to_asset(resources, tmp_path):
    with dg.DagsterInstance.ephemeral() as instance:
        for source in ("news", "poems"):
            materialize([lines], resources, partition_key=source, instance=instance)
        materialize([lines.to_source_asset(), joined, book], resources, selection=[joined, book], instance=instance)
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    assert (store.current("book") / "book.txt").read_text() == "ផ្ការីក news\nផ្ការីក poems"


def test_an_asset_may_take_one_partition_as_if_there_were_no_others(resources, tmp_path):
    only_poems = dg.AssetIn(partition_mapping=dg.SpecificPartitionsPartitionMapping(["poems"]))

    @dg.asset(io_manager_key="folders", ins={"lines": only_poems})
    def anthology(lines: Path) -> Path:
        folder = tmp_path / "anthology"
        folder.mkdir()
        (folder / "book.txt").write_text(pl.read_parquet(lines / "data.parquet")["text"].item())
        return folder

    with dg.DagsterInstance.ephemeral() as instance:
        for source in ("news", "poems"):
            materialize([lines], resources, partition_key=source, instance=instance)
        materialize([lines.to_source_asset(), anthology], resources, selection=[anthology], instance=instance)
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    assert (store.current("anthology") / "book.txt").read_text() == "ផ្ការីក poems"


def test_rows_with_a_rule_are_set_aside_and_counted(resources, tmp_path):
    result = materialize([lines], resources, partition_key="news")
    folder = Store(str(tmp_path / "store"), tmp_path / "cache").current("lines", "news")
    assert pl.read_parquet(folder / "data.parquet").columns == ["text"]
    removed = pl.read_parquet(folder / "removed.parquet")
    assert removed["rule"].to_list() == ["too_short"]
    metadata = result.asset_materializations_for_node("lines")[0].metadata
    assert metadata["dagster/partition_row_count"].value == 1, "the UI takes the other for the count of all partitions"
    assert metadata["rows_removed"].value == 1


def test_the_version_is_the_contents_digest_and_the_data_version(resources, tmp_path):
    results = [materialize([lines], resources, partition_key="news") for _ in range(2)]
    versions = {r.asset_materializations_for_node("lines")[0].tags["dagster/data_version"] for r in results}
    folder = Store(str(tmp_path / "store"), tmp_path / "cache").current("lines", "news")
    assert versions == {folder.name} == {digest_of_folder(folder)}


def test_a_source_without_artifact_is_left_out_and_one_alone_is_still_a_dict(resources):
    with dg.DagsterInstance.ephemeral() as instance:
        materialize([lines], resources, partition_key="news", instance=instance)
        result = materialize([lines.to_source_asset(), joined], resources, selection=[joined], instance=instance)
        assert result.success


def folder_with(parent: Path, text: str) -> Path:
    folder = parent / "made"
    folder.mkdir(exist_ok=True)
    (folder / "file.txt").write_text(text)
    return folder


def versions_in(place: Path) -> set[str]:
    return {entry.name for entry in place.iterdir() if entry.is_dir()}


def test_what_a_killed_commit_left_behind_is_never_seen_and_removed_by_the_next_one(tmp_path):
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    with pytest.raises(MissingArtifact, match="model has not been materialized yet"):
        store.current("model")
    first = store.commit(folder_with(tmp_path, "one"), "model")
    half = tmp_path / "store" / "model" / "all" / f"{SCRATCH}killed" / "version"
    half.mkdir(parents=True)
    (half / "file.txt").write_text("tw")
    assert (store.current("model") / "file.txt").read_text() == "one"
    second = store.commit(folder_with(tmp_path, "two"), "model")
    assert (store.current("model") / "file.txt").read_text() == "two"
    assert versions_in(tmp_path / "store" / "model" / "all") == {first, second}


def test_the_former_version_is_kept_and_older_ones_are_removed(tmp_path):
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    versions = [store.commit(folder_with(tmp_path, text), "model") for text in ("one", "two", "three")]
    assert versions_in(tmp_path / "store" / "model" / "all") == set(versions[1:])


def test_what_a_running_step_reads_stays_until_it_has_ended(resources, tmp_path):
    store = Store(str(tmp_path / "store"), tmp_path / "cache")

    @dg.asset(io_manager_key="folders")
    def mixture() -> Path:
        return folder_with(tmp_path, "trained on")

    @dg.asset(io_manager_key="folders")
    def model(mixture: Path) -> Path:
        for text in ("newer", "newer still"):  # the mixture is made twice while the training runs
            store.commit(folder_with(tmp_path, text), "mixture")
        return folder_with(tmp_path, (mixture / "file.txt").read_text())

    assert materialize([mixture, model], resources).success
    assert (store.current("model") / "file.txt").read_text() == "trained on"
    kept = {store.commit(folder_with(tmp_path, text), "mixture") for text in ("next", "and next")}
    assert versions_in(tmp_path / "store" / "mixture" / "all") == kept


def test_two_commits_of_one_artifact_at_once_both_succeed(tmp_path):
    def commit(number: int) -> str:
        folder = tmp_path / f"made {number}"
        folder.mkdir()
        (folder / "file.txt").write_text(str(number % 3))
        return Store(str(tmp_path / "store"), tmp_path / "cache").commit(folder, "model")

    with ThreadPoolExecutor(8) as pool:
        versions = set(pool.map(commit, range(24)))
    assert len(versions) == 3
    assert Store(str(tmp_path / "store"), tmp_path / "cache").current("model").name in versions


class TestObjectStore:
    """An S3, spoken to over HTTP."""

    @pytest.fixture
    def here(self, s3, tmp_path) -> Store:
        return Store("s3://factory/store", tmp_path / "cache")

    @pytest.fixture
    def elsewhere(self, s3, tmp_path) -> Store:
        return Store("s3://factory/store", tmp_path / "another machine")

    def test_a_version_is_read_through_the_cache(self, here, elsewhere, tmp_path):
        version = here.commit(folder_with(tmp_path, "ទូក"), "model")
        folder = elsewhere.current("model")
        assert folder == tmp_path / "another machine" / "model" / "all" / version
        assert (folder / "file.txt").read_text() == "ទូក"

    def test_what_was_written_here_is_not_fetched_again(self, s3, here, tmp_path):
        version = here.commit(folder_with(tmp_path, "ទូក"), "model")
        s3.rm(f"factory/store/model/all/{version}/file.txt")
        assert (here.current("model") / "file.txt").read_text() == "ទូក"

    def test_a_killed_upload_is_not_taken_as_whole(self, s3, here, elsewhere, tmp_path):
        made = tmp_path / "model"
        made.mkdir()
        for number in range(40):
            (made / f"shard {number:02}").write_bytes(bytes([number]) * 50_000)
        script = (
            "import sys; from pathlib import Path; from resources.storage import Store;"
            "Store('s3://factory/store', Path(sys.argv[2])).commit(Path(sys.argv[1]), 'model')"
        )
        cache = str(tmp_path / "cache")
        process = subprocess.Popen([sys.executable, "-c", script, str(made), cache], cwd=PROJECT)
        while not s3.find("factory/store") and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
        assert 0 < len(s3.find("factory/store")) < 40, "the kill came too early or too late"
        with pytest.raises(MissingArtifact):
            elsewhere.current("model")
        here.commit(made, "model")
        assert digest_of_folder(elsewhere.current("model")) == digest_of_folder(made)

    def test_what_has_no_files_there_is_told_by_one_listing(self, s3, here, tmp_path):
        for partition in ("news", "poems", None):
            here.commit(folder_with(tmp_path, "ទូក"), "model", partition)
        version = here.version("model", "news")
        s3.rm(f"factory/store/model/news/{version}.json")
        s3.rm("factory/store/model/poems", recursive=True)
        asked = [("model", "news"), ("model", "poems"), ("model", None), ("never", None)]
        assert here.without_files(asked) == {("model", "news"), ("model", "poems"), ("never", None)}

    def test_two_processes_that_fetch_at_once_get_the_same(self, here, tmp_path):
        here.commit(folder_with(tmp_path, "ទូក"), "model")
        with ThreadPoolExecutor(4) as pool:
            stores = [Store("s3://factory/store", tmp_path / "another machine") for _ in range(4)]
            found = list(pool.map(lambda store: store.current("model"), stores))
        assert len(set(found)) == 1 and (found[0] / "file.txt").read_text() == "ទូក"

    def test_old_versions_leave_the_store_and_the_cache(self, s3, here, elsewhere, tmp_path):
        versions = []
        for text in ("one", "two", "three", "four"):
            versions.append(here.commit(folder_with(tmp_path, text), "model"))
            elsewhere.current("model")
        listed = {Path(file).name for file in s3.ls("factory/store/model/all")}
        assert listed == {"current", *versions[2:], *(f"{version}.json" for version in versions[2:])}
        assert versions_in(tmp_path / "cache" / "model" / "all") == set(versions[2:])
        assert versions_in(tmp_path / "another machine" / "model" / "all") == {versions[3]}

    def test_content_that_was_changed_on_the_way_is_refused(self, s3, here, elsewhere, tmp_path):
        version = here.commit(folder_with(tmp_path, "ទូក"), "model")
        s3.pipe(f"factory/store/model/all/{version}/file.txt", b"another")
        with pytest.raises(OSError, match="another digest"):
            elsewhere.current("model")
        assert versions_in(tmp_path / "another machine" / "model" / "all") == set()
