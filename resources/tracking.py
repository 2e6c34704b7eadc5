"""Experiment tracking: MLflow on SQLite, through dagster-mlflow.

Each Dagster run that trains is an MLflow run; each asset that it trains is a run nested in it. What is served is a
version of a registered model.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
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


def record(
    home: Path, name: str, dagster_run_id: str, parameters: Mapping[str, str], figures: Mapping[str, float]
) -> None:
    """Write a run that is over: what was not trained, but cost something."""
    from mlflow import MlflowClient, MlflowException

    client = MlflowClient(tracking_uri(home))
    with suppress(MlflowException):  # it is there
        client.create_experiment(EXPERIMENT, artifact_location=(home / "mlflow").as_uri())
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    run = client.create_run(
        experiment.experiment_id, tags={"dagster_run_id": dagster_run_id}, run_name=name
    ).info.run_id
    for key, value in parameters.items():
        client.log_param(run, key, value)
    for key, number in figures.items():
        client.log_metric(run, key, number)
    client.set_terminated(run)


def close_dead_runs(instance: dg.DagsterInstance, home: Path) -> None:
    """End, as KILLED, the runs that are not ended though their Dagster run is: its process was killed."""
    if not (running := _running(home)):
        return
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    client = MlflowClient(tracking_uri(home))
    for run_id in running:
        run = client.get_run(run_id)
        if parent := run.data.tags.get(MLFLOW_PARENT_RUN_ID):
            run = client.get_run(parent)
        if dagster_run_id := run.data.tags.get("dagster_run_id"):  # else it is somebody's own
            made_by = instance.get_run_by_id(dagster_run_id)
            if made_by is None or made_by.is_finished:
                client.set_terminated(run_id, "KILLED")


def _running(home: Path) -> list[str]:
    """The runs that are not ended, without MLflow, whose import takes seconds."""
    file = home / "mlflow.db"
    if not file.exists():
        return []
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        try:
            return [run_id for (run_id,) in database.execute("SELECT run_uuid FROM runs WHERE status = 'RUNNING'")]
        except sqlite3.Error:  # it is being made
            return []


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
