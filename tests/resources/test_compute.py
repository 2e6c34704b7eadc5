"""Heavy work in a child process: what it reports arrives, what it leaves behind is resumed, what kills it is told."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from khmer_assets.foundation import environments
from khmer_assets.foundation.home import PROJECT
from resources.compute import Compute
from resources.storage import FoldersIOManager, MissingArtifact, Store
from tests.resources import counting_payload
from tests.tiny_model import save_embedder, save_tool_model

PAYLOAD = "tests.resources.counting_payload"


def count(home: Path, spec: counting_payload.Spec, store: str | None = None) -> dg.ExecuteInProcessResult:
    @dg.asset(io_manager_key="folders")
    def counted(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output[Path]]:
        yield from compute.materialize(context, PAYLOAD, spec)

    storage = FoldersIOManager(root=store or str(home / "store"), cache=str(home / "cache"))
    resources = {"compute": Compute(home=str(home)), "folders": storage}
    return dg.materialize([counted], resources=resources, raise_on_error=False)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    data = result.failure_data_for_node("counted")
    assert data is not None and data.user_failure_data is not None
    return str(data.user_failure_data.description)


def test_figures_become_metadata_and_the_output_becomes_the_artifact(tmp_path):
    result = count(tmp_path, counting_payload.Spec(until=2))
    metadata = result.asset_materializations_for_node("counted")[0].metadata
    assert metadata["started_at"].value == 0
    assert metadata["peak_memory_mb"].value > 0
    assert (Store(str(tmp_path / "store"), tmp_path).current("counted") / "count.txt").read_text() == "2"


@pytest.mark.slow
def test_transformers_does_without_scikit_learn_in_a_payload_and_an_embedder_has_it(tmp_path):
    embedder = save_embedder(save_tool_model(tmp_path / "model"), tmp_path / "embedder")
    assert count(tmp_path, counting_payload.Spec(until=1, embedder=str(embedder))).success


def test_a_core_is_left_to_environments_that_are_still_built(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(environments, "VLLM", tmp_path)
    monkeypatch.setattr("resources.compute.cores", lambda: 4)
    builder = os.open(tmp_path, os.O_RDONLY)
    for built, threads in ((False, "3"), (True, "all")):
        fcntl.flock(builder, fcntl.LOCK_UN if built else fcntl.LOCK_EX)
        result = count(tmp_path, counting_payload.Spec(until=1 + built))
        assert result.asset_materializations_for_node("counted")[0].metadata["threads"].value == threads
    os.close(builder)


def test_a_refusal_is_told_in_the_payloads_own_words(tmp_path):
    assert failure_of(count(tmp_path, counting_payload.Spec(until=2, refuse=True))) == (
        "given a bad number; expected a good one; change the recipe"
    )


def test_a_payload_that_breaks_shows_the_end_of_its_output(tmp_path):
    assert "broken inside" in failure_of(count(tmp_path, counting_payload.Spec(until=2, break_at=1)))
    with pytest.raises(MissingArtifact):
        Store(str(tmp_path / "store"), tmp_path).current("counted")


def count_in_another_process(home: Path, until: int) -> subprocess.Popen[bytes]:
    """Starts a run and waits until it counts."""
    script = (
        "import sys; from pathlib import Path; from tests.resources.test_compute import *;"
        f"count(Path(sys.argv[1]), counting_payload.Spec(until={until}, seconds_a_step=0.3))"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(home)], cwd=PROJECT, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(home.rglob("counter")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(home.rglob("counter")), "the payload never started"
    return process


def test_a_killed_run_takes_its_payload_along_and_the_next_one_goes_on(tmp_path):
    parent = count_in_another_process(tmp_path, until=8)
    children = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    result = count(tmp_path, counting_payload.Spec(until=8, seconds_a_step=0.3))
    assert result.asset_materializations_for_node("counted")[0].metadata["started_at"].value >= 1
    assert not list(tmp_path.rglob("counter")), "once it is committed, nothing is left to resume"


def test_a_second_run_leaves_a_living_one_alone(tmp_path):
    first = count_in_another_process(tmp_path, until=10)
    assert "another process is materializing this artifact" in failure_of(
        count(tmp_path, counting_payload.Spec(until=2))
    )
    assert first.wait() == 0
    assert (Store(str(tmp_path / "store"), tmp_path).current("counted") / "count.txt").read_text() == "10"


def test_what_could_not_be_committed_is_committed_by_the_next_run_and_not_made_again(tmp_path, s3):
    spec = counting_payload.Spec(until=3)
    assert not count(tmp_path, spec, "s3://later/store").success  # there is no such bucket yet
    made_by = json.loads(next(tmp_path.rglob("figures.json")).read_text())["process"]
    s3.mkdir("later")
    metadata = count(tmp_path, spec, "s3://later/store").asset_materializations_for_node("counted")[0].metadata
    assert metadata["process"].value == made_by
    assert (Store("s3://later/store", tmp_path / "elsewhere").current("counted") / "count.txt").read_text() == "3"
    again = count(tmp_path, spec, "s3://later/store").asset_materializations_for_node("counted")[0].metadata
    assert again["process"].value != made_by
