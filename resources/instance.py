"""Dagster's instance: its home lies under the state folder, so that every command, the UI and the daemon share it."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin

from khmer_assets.foundation.files import in_turn, write_whole
from khmer_assets.foundation.workers import cores

# tag of assets that are made when somebody asks for them, not when they are stale
ON_DEMAND = {"khmer/on_demand": "true"}
ON_DEMAND_PARTITIONS = "khmer/on_demand_partitions"  # metadata: those partitions of an asset of which the same holds

# tag of assets that stay as they are when their inputs change, until somebody asks for them anew
SNAPSHOT = {"khmer/snapshot": "true"}

GPU_POOL = "gpu"  # the pool of the assets that need the accelerator
ASSETS_A_POOL = 1  # at a time
RUNS = 4  # at a time
STEPS = min(RUNS, cores())  # side by side: each may use all cores
SETTINGS: dict[str, Any] = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},  # no newsletter dialog before the first look at the graph
    "concurrency": {"pools": {"default_limit": ASSETS_A_POOL}, "runs": {"max_concurrent_runs": RUNS}},
    "run_monitoring": {"enabled": True, "free_slots_after_run_end_seconds": 60},
}


def dagster_home(home: Path) -> Path:
    """Dagster's home under the state folder, with the project's settings in it."""
    folder = home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    file, text = folder / "dagster.yaml", yaml.safe_dump(SETTINGS)
    if not file.exists() or file.read_text() != text:
        write_whole(file, text)
    return folder


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance of this state folder; also makes it the one of every process that is started from here."""
    folder = dagster_home(home)
    os.environ["DAGSTER_HOME"] = str(folder)
    with in_turn(folder):  # two that make Dagster's databases at once leave some that no one can open
        return dg.DagsterInstance.get()


def show_in_timeline(instance: dg.DagsterInstance, run_id: str, graph: str) -> None:
    """Tell Dagster that a run which it did not launch is of the graph that the UI shows under the name `graph`.

    Its first page leaves out the others. Classes of Dagster that are not public are used here alone.
    """
    run = instance.get_run_by_id(run_id)
    if run is not None:
        location = GrpcServerCodeLocationOrigin(host="localhost", socket="graph.sock", location_name=graph)
        repository = RemoteRepositoryOrigin(location, "__repository__")
        instance.run_storage.replace_job_origin(run, RemoteJobOrigin(repository, run.job_name))
