"""Only what is missing or stale is materialized, a failure holds back only what needs it, and dead runs are closed."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from khmer_assets.commands.materialization import (
    PROCESS_TAG,
    MaterializationError,
    close_dead_runs,
    materialize,
    materialize_stale,
)
from resources.instance import ON_DEMAND, SNAPSHOT
from resources.storage import FramesIOManager

SOURCES = dg.StaticPartitionsDefinition(["news", "poems"])


class Factory:
    """A small graph in the shape of the real one: files, a table a source, a table of all, and a last step."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.executed: list[str] = []
        self.setting = "1"
        self.check_passes = True
        self.interrupted = False
        self.anthology = False
        self.tags_of_mixed: dict[str, str] = {}
        for source in SOURCES.get_partition_keys():
            (folder / source).write_text(f"អត្ថបទ {source}")

    def definitions(self) -> dg.Definitions:
        @dg.observable_source_asset(partitions_def=SOURCES)
        def source_files():
            texts = {s: (self.folder / s) for s in SOURCES.get_partition_keys()}
            return dg.DataVersionsByPartition({s: f.read_text() if f.exists() else "none" for s, f in texts.items()})

        @dg.asset(partitions_def=SOURCES, deps=[source_files], io_manager_key="frames", code_version="1")
        def raw(context: dg.AssetExecutionContext) -> pl.LazyFrame:
            self.executed.append(f"raw {context.partition_key}")
            file = self.folder / context.partition_key
            if not file.exists():
                raise dg.Failure(f"{file.name} is missing; put it back")
            return pl.LazyFrame({"text": [file.read_text()]})

        @dg.asset(partitions_def=SOURCES, io_manager_key="frames", code_version=self.setting)
        def clean(context: dg.AssetExecutionContext, raw: pl.LazyFrame) -> pl.LazyFrame:
            self.executed.append(f"clean {context.partition_key}")
            return raw.with_columns(pl.col("text").str.strip_chars())

        @dg.asset(io_manager_key="frames", code_version="1", tags=self.tags_of_mixed)
        def mixed(clean: dict[str, pl.LazyFrame]) -> pl.LazyFrame:
            self.executed.append("mixed")
            return pl.concat(clean.values())

        @dg.asset_check(asset=mixed, blocking=True)
        def enough_text(mixed: pl.LazyFrame) -> dg.AssetCheckResult:
            return dg.AssetCheckResult(passed=self.check_passes)

        @dg.asset_check(asset=mixed, additional_ins={"now": dg.AssetIn("clean")})
        def is_recent(mixed: pl.LazyFrame, now: dict[str, pl.LazyFrame]) -> dg.AssetCheckResult:
            new = len(set(pl.concat(now.values()).collect()["text"]) - set(mixed.collect()["text"]))
            return dg.AssetCheckResult(passed=not new, description=f"{new} are new")

        @dg.asset(io_manager_key="frames", code_version="1")
        def model(mixed: pl.LazyFrame) -> pl.LazyFrame:
            self.executed.append("model")
            return mixed.head(1)

        @dg.asset(io_manager_key="frames", code_version="1", tags=ON_DEMAND)
        def speed(model: pl.LazyFrame) -> pl.LazyFrame:
            self.executed.append("speed")
            if self.interrupted:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
            return model

        only_poems = dg.AssetIn(partition_mapping=dg.SpecificPartitionsPartitionMapping(["poems"]))

        @dg.asset(io_manager_key="frames", code_version="1", ins={"clean": only_poems})
        def anthology(clean: dict[str, pl.LazyFrame]) -> pl.LazyFrame:
            self.executed.append("anthology")
            return clean["poems"]

        storage = FramesIOManager(root=str(self.folder / "store"), cache=str(self.folder / "cache"))
        assets: list[Any] = [source_files, raw, clean, mixed, model, speed, *([anthology] if self.anthology else [])]
        return dg.Definitions(assets=assets, asset_checks=[enough_text, is_recent], resources={"frames": storage})

    def run(self, instance: dg.DagsterInstance):
        self.executed.clear()
        return materialize_stale(self.definitions(), instance, say=lambda _: None)


@pytest.fixture
def factory(tmp_path):
    return Factory(tmp_path)


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def test_everything_runs_once_and_then_nothing(factory, instance):
    assert not factory.run(instance).failed
    assert factory.executed == ["raw news", "raw poems", "clean news", "clean poems", "mixed", "model"]
    assert factory.run(instance).materialized == []
    assert factory.executed == []


def test_a_changed_file_runs_its_source_and_what_depends_on_it(factory, instance):
    factory.run(instance)
    (factory.folder / "poems").write_text("កំណាព្យថ្មី")
    factory.run(instance)
    assert factory.executed == ["raw poems", "clean poems", "mixed", "model"]


def test_a_change_without_effect_stops_where_it_has_none(factory, instance):
    factory.run(instance)
    (factory.folder / "poems").write_text("អត្ថបទ poems \n")
    factory.run(instance)
    assert factory.executed == ["raw poems", "clean poems"]


def test_a_changed_setting_runs_what_reads_it(factory, instance):
    factory.run(instance)
    factory.setting = "2"
    factory.run(instance)
    assert factory.executed == ["clean news", "clean poems"]


def test_a_source_that_fails_does_not_stop_the_others(factory, instance):
    (factory.folder / "news").unlink()
    summary = factory.run(instance)
    assert summary.failed == {"raw (news)": "news is missing; put it back"}
    assert list(summary.held_back) == ["clean (news)"]
    assert factory.executed == ["raw news", "raw poems", "clean poems", "mixed", "model"]


def test_what_takes_one_partition_waits_for_that_one_alone(factory, instance):
    factory.anthology = True
    factory.run(instance)
    (factory.folder / "news").unlink()
    assert "anthology" not in factory.run(instance).held_back
    (factory.folder / "poems").unlink()
    summary = factory.run(instance)
    assert summary.held_back["anthology"] == "raw (poems) failed"


def test_a_failed_blocking_check_holds_back_what_follows_also_the_next_time(factory, instance):
    factory.check_passes = False
    for _ in range(2):
        summary = factory.run(instance)
        assert "model" not in factory.executed
        assert summary.held_back == {"model": "the check of mixed 'enough_text' failed"}


def test_what_is_made_on_demand_runs_only_when_it_is_asked_for(factory, instance):
    factory.run(instance)
    assert "speed" not in factory.executed
    materialize(factory.definitions(), instance, "speed")
    assert factory.executed[-1] == "speed"


def test_what_is_asked_for_and_fails_tells_its_reason(factory, instance):
    with pytest.raises(MaterializationError, match=r"speed: .*model has not been materialized yet"):
        materialize(factory.definitions(), instance, "speed")


def test_ctrl_c_ends_what_was_asked_for(factory, instance):
    factory.run(instance)
    factory.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        materialize(factory.definitions(), instance, "speed")


def test_a_run_whose_process_died_is_closed(factory, instance):
    job = factory.definitions().resolve_implicit_job_def_def_for_assets([dg.AssetKey("model")])
    run = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: "0-0"})
    close_dead_runs(instance)
    assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_snapshot_stays_until_somebody_asks_for_it_or_a_source_is_there_for_the_first_time(factory):
    factory.tags_of_mixed = SNAPSHOT
    (factory.folder / "poems").unlink()
    said: list[str] = []
    with dg.DagsterInstance.ephemeral() as instance:
        factory.run(instance)
        (factory.folder / "news").write_text("ព័ត៌មានថ្មី")
        factory.executed.clear()
        materialize_stale(factory.definitions(), instance, say=said.append)
        assert sorted(factory.executed) == ["clean news", "raw news", "raw poems"]
        assert any("mixed is a snapshot, and 1 are new; `khmer snapshot` takes a new one" in line for line in said)
        materialize(factory.definitions(), instance, "mixed")
        factory.run(instance)
        assert factory.executed == ["raw poems", "model"]
        (factory.folder / "poems").write_text("កំណាព្យ")
        factory.run(instance)
        assert factory.executed == ["raw poems", "clean poems", "mixed", "model"]
