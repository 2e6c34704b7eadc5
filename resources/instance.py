"""Dagster's instance: its home lies under the state folder, so that every command, the UI and the daemon share it."""

import os
import shutil
from pathlib import Path

import dagster as dg

ON_DEMAND = {
    "khmer/on_demand": "true"
}  # tag of assets that are made when somebody asks for them, not when they are stale
SETTINGS = Path(__file__).parent / "dagster.yaml"


def dagster_home(home: Path) -> Path:
    """Dagster's home under the state folder, with the project's settings in it."""
    folder = home / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / "dagster.yaml.aside"
    shutil.copyfile(SETTINGS, aside)
    os.replace(aside, folder / "dagster.yaml")
    return folder


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance of this state folder; also makes it the one of every process that is started from here."""
    os.environ["DAGSTER_HOME"] = str(dagster_home(home))
    return dg.DagsterInstance.get()
