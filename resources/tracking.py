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
        yield MlFlow(context)
    finally:
        mlflow.end_run()  # dagster-mlflow leaves runs open


@contextmanager
def tracked_run(mlflow: Any, context: dg.AssetExecutionContext) -> Iterator[dict[str, str]]:
    """A nested MLflow run named after the asset; gives the environment that lets a payload write to it."""
    name = context.asset_key.to_python_identifier()
    with mlflow.start_run(run_name=name, nested=True) as run:
        context.add_output_metadata({"mlflow_run": run.info.run_id})
        yield {"MLFLOW_RUN_ID": run.info.run_id, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}


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
