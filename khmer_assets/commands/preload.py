"""What the process imports of which all steps are forks: the graph, and what Dagster loads when it first runs a step.

Each step would else load it anew, for a second or two. Nothing stays open here that forks must not share.
"""

import tempfile

import dagster as dg

from khmer_assets.definitions import defs


@dg.asset
def nothing() -> None:
    """Made once, in a folder that is thrown away."""


defs.resolve_asset_graph()
quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as instance:
    dg.materialize([nothing], instance=instance, run_config=quiet)
