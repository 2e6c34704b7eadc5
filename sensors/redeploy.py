"""Watches `release` and `adapter_release` and serves what lands there. What fails a gate becomes no release, so never
gets here.

And looks whether what should be served still is, after a restart of the machine.
"""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from resources.model_server import ModelServer, ModelServerError

WATCH_SECONDS = 10
KEEP_SECONDS = 30
EVENTS_A_LOOK = 100


def redeploy_sensor(
    name: str, asset: str, job: UnresolvedAssetJobDefinition, on_release: bool = False
) -> dg.SensorDefinition:
    """A sensor that runs `job`, which deploys, for the newest materialization of `asset` of each partition.

    With `on_release` it waits until a release is served on which `asset` can be.
    """

    @dg.sensor(
        name=name,
        job=job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=WATCH_SECONDS,
        required_resource_keys={"model_server"} if on_release else set(),
        description=f"Serves a new {asset} as soon as it is materialized; what was served stays when it fails.",
    )
    def redeploy(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        since = dg.AssetRecordsFilter(dg.AssetKey(asset), after_storage_id=int(context.cursor or 0))
        events = context.instance.fetch_materializations(since, ascending=True, limit=EVENTS_A_LOOK).records
        if not events:
            return dg.SkipReason(f"no new {asset}")
        if on_release and not context.resources.model_server.serves():
            return dg.SkipReason(f"no release is served yet, on which the new {asset} could be")
        requests = {}
        for event in events:
            release = event.asset_materialization
            assert release is not None, "materializations were asked for"
            digest = str(release.metadata["digest"].value)
            # the run's id is in the key so that going back to an earlier release is a deployment too
            requests[release.partition] = dg.RunRequest(
                run_key=f"{digest}-{event.run_id}", tags={"khmer/release": digest}, partition_key=release.partition
            )
        return dg.SensorResult(list(requests.values()), cursor=str(events[-1].storage_id))

    return redeploy


def keep_serving_sensor() -> dg.SensorDefinition:
    """A sensor that starts the gateway and the engines when they should run and do not."""

    @dg.sensor(
        name="keep_serving",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=KEEP_SECONDS,
        description="Serves the last release again after a restart of the machine. `make stop` is left alone.",
    )
    def keep_serving(model_server: ModelServer) -> dg.SkipReason:
        try:
            started = model_server.keep_serving()
        except ModelServerError as error:
            return dg.SkipReason(f"the server cannot be started: {error}")
        return dg.SkipReason("the server did not run and is started" if started else "nothing to do")

    return keep_serving
