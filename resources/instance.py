"""Dagster's instance: its home lies under the state folder, so that every command, the UI and the daemon share it."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

# tag of assets that are made when somebody asks for them, not when they are stale
ON_DEMAND = {"khmer/on_demand": "true"}

# tag of assets that stay as they are when their inputs change, until somebody asks for them anew
SNAPSHOT = {"khmer/snapshot": "true"}

GPU_POOL = "gpu"  # the pool of the assets that need the accelerator
ASSETS_A_POOL = 1  # at a time
RUNS = 4  # at a time
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
    aside = folder / "dagster.yaml.aside"
    aside.write_text(yaml.safe_dump(SETTINGS))
    os.replace(aside, folder / "dagster.yaml")
    return folder


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance of this state folder; also makes it the one of every process that is started from here."""
    os.environ["DAGSTER_HOME"] = str(dagster_home(home))
    return dg.DagsterInstance.get()
