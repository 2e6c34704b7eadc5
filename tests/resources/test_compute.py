"""Heavy work in a child process: what it reports arrives, what it leaves behind is resumed, what kills it is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import psutil
import pytest

from khmer_assets.foundation.home import PROJECT
from resources.compute import Compute
from resources.storage import FoldersIOManager, MissingArtifact, Store
from tests.resources import counting_payload

PAYLOAD = "tests.resources.counting_payload"


def count(home: Path, spec: counting_payload.Spec) -> dg.ExecuteInProcessResult:
    @dg.asset(io_manager_key="folders")
    def counted(context: dg.AssetExecutionContext, compute: Compute) -> dg.Output[Path]:
        return compute.run(context, PAYLOAD, spec)

    storage = FoldersIOManager(root=str(home / "store"), cache=str(home / "cache"))
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


def test_a_refusal_is_told_in_the_payloads_own_words(tmp_path):
    assert failure_of(count(tmp_path, counting_payload.Spec(until=2, refuse=True))) == (
        "given a bad number; expected a good one; change the recipe"
    )


def test_a_payload_that_breaks_shows_the_end_of_its_output(tmp_path):
    assert "broken inside" in failure_of(count(tmp_path, counting_payload.Spec(until=2, break_at=1)))
    with pytest.raises(MissingArtifact):
        Store(str(tmp_path / "store"), tmp_path).current("counted")


def test_a_killed_run_takes_its_payload_along_and_the_next_one_goes_on(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.resources.test_compute import *;"
        "count(Path(sys.argv[1]), counting_payload.Spec(until=8, seconds_a_step=0.3))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=PROJECT, start_new_session=True)
    counter = Path(tmp_path / "work")
    deadline = time.monotonic() + 60
    while not (found := list(counter.rglob("counter"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found, "the payload never started"
    children = psutil.Process(parent.pid).children(recursive=True)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    result = count(tmp_path, counting_payload.Spec(until=8, seconds_a_step=0.3))
    assert result.asset_materializations_for_node("counted")[0].metadata["started_at"].value >= 1
