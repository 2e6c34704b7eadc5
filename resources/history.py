"""How much of the past is kept: Dagster's runs with their events, and the copies of models in MLflow.

The store keeps what it needs by itself (`resources.storage`), the audit records have a setting of the server's.
"""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.foundation.settings import PositiveInt, Settings
from resources.blocking_checks import runs_of_evaluations
from resources.payload import MODEL
from resources.staleness import runs_of_versions
from resources.tracking import EXPERIMENT, tracking_uri

ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


class History(Settings):
    """`run_days`: how long Dagster keeps a run and its events; those that tell what is up to date stay as long as they
    do. `tracked_models`: of how many trainings of each kind MLflow keeps the model; figures stay of all."""

    run_days: PositiveInt = 90
    tracked_models: PositiveInt = 3


def forget_runs(instance: dg.DagsterInstance, graph: Any, days: float) -> int:
    """Delete the runs that ended before so many days and tell nothing of the present; how many they were."""
    needed = runs_of_versions(instance, graph) | runs_of_evaluations(instance, graph)
    old = dg.RunsFilter(statuses=ENDED, created_before=datetime.now(UTC) - timedelta(days=days))
    forgotten = [run.run_id for run in instance.get_runs(old) if run.run_id not in needed]
    for run_id in forgotten:
        instance.delete_run(run_id)
    return len(forgotten)


def forget_models(home: Path, count: int) -> int:
    """Delete MLflow's copies of models, but for those of the `count` newest runs of each name; how many they were."""
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = MlflowClient(tracking_uri(home))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    by_name, page = defaultdict(list), None
    while experiment:
        found = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"], page_token=page)
        for run in found:
            by_name[run.info.run_name].append(run)
        if not (page := found.token):
            break
    forgotten = 0
    for runs in by_name.values():
        with_model = [run.info for run in runs if client.list_artifacts(run.info.run_id, MODEL)]
        for info in with_model[count:]:
            files: Any = get_artifact_repository(info.artifact_uri, tracking_uri=tracking_uri(home))
            files.delete_artifacts(MODEL)
            forgotten += 1
    return forgotten
