"""What the process imports of which all steps are forks: the graph, and what Dagster loads when it first runs a step.

Each step would else load it anew, for a second or two. Nothing stays open here that forks must not share.
"""

import os
import signal
import tempfile
from pathlib import Path

import dagster as dg

from khmer_assets.commands.steps import STOPPING
from khmer_assets.definitions import defs
from resources.instance import dagster_home


@dg.asset
def nothing() -> None:
    """Made once, in a folder that is thrown away."""


os.setpgid(0, 0)  # what stops a run is sent to its group, and this process ends with the run, after its steps
signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
defs.resolve_asset_graph()
quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
with tempfile.TemporaryDirectory() as folder:
    settings = dagster_home(Path(folder))  # without telemetry
    with dg.DagsterInstance.local_temp(str(settings)) as instance:
        dg.materialize([nothing], instance=instance, run_config=quiet)
