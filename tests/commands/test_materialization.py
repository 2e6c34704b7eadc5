"""Only what is missing or stale is materialized, side by side where it can be; a failure holds back what needs it, and
whoever stops a run is obeyed."""

import os
import shutil
import signal
import subprocess
import sys
import time

import dagster as dg
import pytest

from khmer_assets.commands.materialization import MaterializationError, Summary, materialize, materialize_stale
from khmer_assets.commands.steps import PROCESS_TAG, close_dead_runs
from khmer_assets.foundation.home import PROJECT
from resources.instance import STEPS, open_instance
from tests.commands.small_factory import SOURCES, Factory


@pytest.fixture(scope="session")
def new_home(tmp_path_factory):
    """A state folder whose database is made already, which takes seconds."""
    home = tmp_path_factory.mktemp("new") / "home"
    open_instance(home).dispose()
    return home


@pytest.fixture
def factory(tmp_path, new_home):
    made = Factory(tmp_path)
    shutil.copytree(new_home, made.home)
    for source in SOURCES.get_partition_keys():
        (tmp_path / source).write_text(f"អត្ថបទ {source}")
    return made


def run(factory: Factory, dry_run: bool = False) -> Summary:
    factory.said.clear()
    return materialize_stale(factory.load, factory.home, factory.said.append, dry_run)


def test_everything_runs_once_and_then_nothing(factory):
    assert run(factory, dry_run=True).materialized == []
    assert factory.said[0] == "to make: 6 of 6"
    assert "  raw (news, poems): it was never made" in factory.said
    assert factory.executed() == []
    assert not run(factory).failed
    assert factory.executed() == ["clean news", "clean poems", "mixed", "model", "raw news", "raw poems"]
    assert run(factory) == Summary(fresh=6)
    assert factory.executed() == []


def test_a_change_goes_on_as_far_as_it_changes_something(factory):
    run(factory)
    factory.executed()
    (factory.folder / "poems").write_text("កំណាព្យថ្មី")
    run(factory)
    assert factory.said[:6] == [
        "to make: 1 of 6",
        "  raw (poems): source_files (poems) changed",
        "and what is made of them, where they come out different:",
        "  clean (poems)",
        "  mixed",
        "  model",
    ]
    assert factory.executed() == ["clean poems", "mixed", "model", "raw poems"]
    (factory.folder / "poems").write_text("កំណាព្យថ្មី \n")
    run(factory)
    assert factory.executed() == ["clean poems", "raw poems"]
    factory.setting = "2"
    run(factory)
    assert factory.executed() == ["clean news", "clean poems"]


def test_a_snapshot_stays_until_somebody_asks_for_it_or_a_source_is_there_for_the_first_time(factory):
    factory.snapshot = True
    (factory.folder / "poems").unlink()
    run(factory)
    factory.executed()
    (factory.folder / "news").write_text("ព័ត៌មានថ្មី")
    run(factory)
    assert factory.executed() == ["clean news", "raw news", "raw poems"]
    assert factory.said[-1] == "mixed is a snapshot, and 1 are new; `khmer snapshot` takes a new one"
    materialize(factory.load, factory.home, "mixed")
    run(factory)
    assert factory.executed() == ["mixed", "model", "raw poems"]
    (factory.folder / "poems").write_text("កំណាព្យ")
    run(factory)
    assert factory.executed() == ["clean poems", "mixed", "model", "raw poems"]
    (factory.folder / "poems").write_text("កំណាព្យថ្មី")
    run(factory, dry_run=True)
    assert "  clean (poems)" in factory.said and "  mixed" not in factory.said


def test_what_has_no_files_any_more_is_made_again(factory):
    run(factory)
    factory.executed()
    shutil.rmtree(factory.folder / "store" / "clean" / "poems")
    assert run(factory).materialized == ["clean (poems)"]
    assert factory.said[:2] == ["to make: 1 of 6", "  clean (poems): its files are gone"]
    assert factory.executed() == ["clean poems"], "what was made of it is what it was"
    (factory.folder / "store").rename(factory.folder / "moved")
    assert len(run(factory).materialized) == 6
    assert "  model: its files are gone" in factory.said
    assert run(factory) == Summary(fresh=6)


def test_what_was_kept_and_set_aside_is_told(factory):
    (factory.folder / "news").write_text("ល្អ\nអាក្រក់\n")
    (factory.folder / "poems").write_text("អាក្រក់\n")
    run(factory)
    assert any(line.endswith("1 rows kept, 1 set aside") and "raw (news)" in line for line in factory.said)
    (warning,) = [line.strip() for line in factory.said if "WARNING" in line]
    assert warning.startswith("WARNING: raw (poems) set all of its rows aside; ")


def test_a_failure_is_told_once_and_holds_back_only_what_needs_it(factory):
    factory.anthology = True
    (factory.folder / "news").unlink()
    summary = run(factory)
    assert summary.failed == {"raw (news)": "news is missing; put it back"}
    assert list(summary.held_back) == ["clean (news)"]
    assert factory.executed() == ["anthology", "clean poems", "mixed", "model", "raw news", "raw poems"]
    assert len([line for line in factory.said if "news is missing" in line]) == 1
    (factory.folder / "poems").unlink()
    summary = run(factory)
    assert summary.held_back["anthology"] == "raw (poems) failed"


def test_a_failed_blocking_check_holds_back_what_follows_also_the_next_time(factory):
    factory.check_passes = False
    for _ in range(2):
        summary = run(factory)
        assert "model" not in factory.executed()
        assert summary.held_back == {"model": "the check of mixed 'enough_text' failed"}


def test_a_step_that_the_system_kills_is_told_as_such_and_the_others_go_on(factory):
    factory.killed = "raw news"
    summary = run(factory)
    assert "SIGKILL" in summary.failed["raw (news)"]
    assert "memory" in summary.failed["raw (news)"]
    assert "model" in summary.materialized


@pytest.mark.skipif(STEPS < 2, reason="one core makes one step at a time")
def test_sources_are_made_side_by_side(factory):
    factory.together = True
    assert not run(factory).failed


def test_steps_of_one_pool_run_one_after_the_other(factory):
    factory.pool = "gpu"
    assert not run(factory).failed


def test_what_is_made_on_demand_runs_only_when_it_is_asked_for(factory):
    with pytest.raises(MaterializationError, match=r"speed: .*model has not been materialized yet"):
        materialize(factory.load, factory.home, "speed")
    run(factory)
    assert "speed" not in factory.executed()
    materialize(factory.load, factory.home, "speed")
    assert factory.executed() == ["speed"]


def test_a_partition_that_is_made_on_demand_is_left_out_too(factory):
    factory.chapters = True
    summary = run(factory)
    assert "chapter (now)" in summary.materialized and not summary.failed
    assert [name for name in factory.executed() if name.startswith("chapter")] == ["chapter now"]
    assert not run(factory).materialized


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_a_run_is_obeyed_and_nothing_is_made_from_what_is_left(factory, number):
    factory.slow = "clean poems"
    factory.write()
    script = (
        "import sys; from pathlib import Path; from tests.commands.small_factory import Factory;"
        "from khmer_assets.commands import COMMANDS, main, run;"
        "from khmer_assets.commands.materialization import materialize_stale as make;"
        "made = Factory(Path(sys.argv[1]), slow='clean poems');"
        "run.main = lambda _: make(made.load, made.home); sys.argv[1:] = ['run']; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(factory.folder)],
        cwd=PROJECT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    begun = factory.folder / "executed"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (begun.exists() and "clean poems" in begun.read_text()):
        time.sleep(0.1)
    os.killpg(process.pid, number)  # terminals and service managers tell all processes of a group
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told.strip().splitlines()[-1] == "stopped; the next run goes on from here"
    assert "Traceback" not in told
    assert "mixed" not in factory.executed()
    instance = open_instance(factory.home)
    assert all(run.remote_job_origin for run in instance.get_runs()), "else the UI's first page leaves them out"
    assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.CANCELED}
    factory.slow = ""
    assert {"clean (poems)", "mixed", "model"} <= set(run(factory).materialized)


def test_a_run_whose_process_died_is_closed(factory):
    instance = open_instance(factory.home)
    job = factory.load().resolve_implicit_job_def_def_for_assets([dg.AssetKey("model")])
    begun = instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: "0-0"})
    close_dead_runs(instance, factory.home)
    assert instance.get_run_by_id(begun.run_id).status == dg.DagsterRunStatus.CANCELED
