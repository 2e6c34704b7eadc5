"""Experiment tracking: MLflow on SQLite, through dagster-mlflow.

Each Dagster run that trains is an MLflow run; each asset that it trains is a run nested in it. What is served is a
version of a registered model.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg

EXPERIMENT = "khmer"


def tracking_uri(home: Path) -> str:
    """The address of the tracking database under the state folder."""
    return f"sqlite:///{home / 'mlflow.db'}"


@dg.resource(
    config_schema={
        "experiment_name": str,
        "mlflow_tracking_uri": str,
        "artifacts": dg.Field(str, description="Folder for the files of the runs."),
    }
)
def mlflow_tracking(context: dg.InitResourceContext) -> Iterator[Any]:
    """dagster-mlflow's resource, imported only when a run needs it (MLflow takes seconds to import)."""
    import mlflow
    from dagster_mlflow.resources import MlFlow

    mlflow.set_tracking_uri(context.resource_config["mlflow_tracking_uri"])
    name = context.resource_config["experiment_name"]
    if mlflow.get_experiment_by_name(name) is None:
        mlflow.create_experiment(name, artifact_location=Path(context.resource_config["artifacts"]).as_uri())
    try:
        tracked = MlFlow(context)
        if context.dagster_run is not None:
            mlflow.set_tag("mlflow.runName", _name(context.dagster_run))
        yield tracked
    finally:
        mlflow.end_run()  # dagster-mlflow leaves runs open


def _name(run: dg.DagsterRun) -> str:
    """What people know a Dagster run by: its job, or its assets and partition where Dagster has made up a job."""
    if not run.asset_selection or not run.job_name.startswith("__"):
        return run.job_name
    assets = ", ".join(sorted(key.to_user_string() for key in run.asset_selection))
    partition = run.tags.get("dagster/partition")
    return f"{assets} ({partition})" if partition else assets


@contextmanager
def tracked_run(mlflow: Any, context: dg.AssetExecutionContext) -> Iterator[dict[str, str]]:
    """A nested MLflow run named after the asset; gives the environment that lets a payload write to it.

    Both runs end as FAILED or, where somebody stopped them, as KILLED, when the block raises.
    """
    name = context.asset_key.to_python_identifier()
    run = mlflow.start_run(run_name=name, nested=True)
    context.add_output_metadata({"mlflow_run": run.info.run_id})
    try:
        yield {"MLFLOW_RUN_ID": run.info.run_id, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        mlflow.end_run(status)
        mlflow.end_run(status)  # of the Dagster run
        raise
    mlflow.end_run()


def mark_served(home: Path, name: str, digest: str, folder: Path, figures: Mapping[str, Any] | None = None) -> None:
    """Give the alias `served` of the registered model `name` to the version of this digest; registered, if it is new.

    `folder` is where its files are, `figures` what is known of its quality.
    """
    from mlflow import MlflowClient, MlflowException

    client = MlflowClient(tracking_uri(home))
    with suppress(MlflowException):  # it is there
        client.create_registered_model(name)
    found = [v for v in client.search_model_versions(f"name='{name}'") if v.tags.get("digest") == digest]
    tags = {key: json.dumps(value) for key, value in (figures or {}).items()} | {"digest": digest}
    version = found[0] if found else client.create_model_version(name, folder.as_uri(), tags=tags)
    client.set_registered_model_alias(name, "served", version.version)
