"""The I/O managers: what is committed is whole, versions are digests, rows set aside stand beside the others."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from khmer_assets.foundation.files import digest_of_folder
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
    assert metadata["dagster/row_count"].value == 1
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
    folder.mkdir()
    (folder / "file.txt").write_text(text)
    return folder


def test_a_folder_that_was_not_committed_is_never_seen(tmp_path):
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    with pytest.raises(MissingArtifact, match="model has not been materialized yet"):
        store.current("model")
    store.commit(folder_with(tmp_path, "one"), "model")
    half = tmp_path / "store" / "model" / "all" / ".moving"  # what a kill during a copy leaves behind
    half.mkdir()
    (half / "file.txt").write_text("tw")
    assert (store.current("model") / "file.txt").read_text() == "one"
    store.commit(folder_with(tmp_path, "two"), "model")
    assert (store.current("model") / "file.txt").read_text() == "two"


def test_the_former_version_is_kept_and_older_ones_are_removed(tmp_path):
    store = Store(str(tmp_path / "store"), tmp_path / "cache")
    versions = [store.commit(folder_with(tmp_path, text), "model") for text in ("one", "two", "three")]
    place = tmp_path / "store" / "model" / "all"
    assert {p.name for p in place.iterdir() if p.is_dir()} == set(versions[1:])


def test_a_remote_store_is_read_through_the_cache(tmp_path):
    store = Store("memory://factory", tmp_path / "cache")
    store.commit(folder_with(tmp_path, "ទូក"), "model")
    folder = store.current("model")
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "file.txt").read_text() == "ទូក"
