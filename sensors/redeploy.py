"""Watches `release` and serves what lands there. A model that fails a gate becomes no release, so never gets here."""

import dagster as dg
from dagster import EventLogEntry, SensorEvaluationContext
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

WATCH_SECONDS = 10


def redeploy_sensor(job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    """A sensor that runs `job`, which deploys, after each materialization of `release`."""

    @dg.asset_sensor(
        asset_key=dg.AssetKey("release"),
        name="redeploy",
        job=job,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=WATCH_SECONDS,
        description="Serves a new release as soon as it is materialized; rolls back when it does not start.",
    )
    def redeploy(context: SensorEvaluationContext, event: EventLogEntry) -> dg.RunRequest:
        release = event.asset_materialization
        assert release is not None, "an asset sensor gets materializations"
        digest = str(release.metadata["digest"].value)
        # the run's id is in the key so that going back to an earlier release is a deployment too
        return dg.RunRequest(run_key=f"{digest}-{event.run_id}", tags={"khmer/release": digest})

    return redeploy
