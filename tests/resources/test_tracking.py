"""Runs say what they made and how they ended; what is served is a version in MLflow's registry."""

from contextlib import suppress
from typing import Any

import dagster as dg
import pytest
from mlflow import MlflowClient

from resources.tracking import EXPERIMENT, close_dead_runs, mark_served, mlflow_tracking, tracked_run, tracking_uri


def test_the_alias_follows_what_is_served(tmp_path):
    for digest, accuracy in (("a" * 16, 0.5), ("b" * 16, 0.6), ("a" * 16, 0.5)):
        mark_served(tmp_path, "khmer", digest, tmp_path / digest, {"answer_accuracy": accuracy})
    client = MlflowClient(tracking_uri(tmp_path))
    served = client.get_model_version_by_alias("khmer", "served")
    assert served.tags == {"digest": "a" * 16, "answer_accuracy": "0.5"}
    assert len(client.search_model_versions("name='khmer'")) == 2, "a version a digest"


@pytest.mark.parametrize(
    ("raised", "status"), [(None, "FINISHED"), (ValueError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_runs_are_named_after_what_they_make_and_end_as_it_did(tmp_path, raised, status):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["news"]))
    def tiny_model(context: dg.AssetExecutionContext, mlflow: dg.ResourceParam[Any]) -> None:
        with tracked_run(mlflow, context):
            if raised:
                raise raised

    config = {
        "experiment_name": EXPERIMENT,
        "mlflow_tracking_uri": tracking_uri(tmp_path),
        "artifacts": str(tmp_path / "mlflow"),
    }
    defs = dg.Definitions([tiny_model], resources={"mlflow": mlflow_tracking.configured(config)})
    job = defs.resolve_implicit_job_def_def_for_assets([tiny_model.key])
    assert job is not None
    with suppress(KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        job.execute_in_process(partition_key="news", asset_selection=[tiny_model.key], raise_on_error=False)
    client = MlflowClient(tracking_uri(tmp_path))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    found = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert found == {"tiny_model (news)": status, "tiny_model": status}


def test_runs_of_a_process_that_was_killed_are_closed_and_those_of_a_living_one_are_not(tmp_path):
    client = MlflowClient(tracking_uri(tmp_path))
    experiment = client.create_experiment(EXPERIMENT, artifact_location=(tmp_path / "mlflow").as_uri())
    with dg.DagsterInstance.ephemeral() as instance:
        job = dg.Definitions([dg.AssetSpec("x")]).resolve_implicit_global_asset_job_def()
        statuses = {}
        for name, status in (("dead", dg.DagsterRunStatus.CANCELED), ("alive", dg.DagsterRunStatus.STARTED)):
            made_by = instance.create_run_for_job(job, status=status)
            outer = client.create_run(experiment, tags={"dagster_run_id": made_by.run_id}).info.run_id
            inner = client.create_run(experiment, tags={"mlflow.parentRunId": outer}).info.run_id
            statuses[name] = [outer, inner]
        statuses["own"] = [client.create_run(experiment).info.run_id]
        for _ in range(2):
            close_dead_runs(instance, tmp_path)
    found = {name: {client.get_run(run).info.status for run in runs} for name, runs in statuses.items()}
    assert found == {"dead": {"KILLED"}, "alive": {"RUNNING"}, "own": {"RUNNING"}}
