"""The past is forgotten, but for what tells what is up to date, and the models of the newest trainings."""

import dagster as dg
import mlflow

from resources.blocking_checks import unmet_checks
from resources.history import forget_models, forget_runs
from resources.payload import MODEL
from resources.staleness import causes
from resources.tracking import EXPERIMENT, tracking_uri

SOURCES = dg.StaticPartitionsDefinition(["news", "poems"])


@dg.asset(partitions_def=SOURCES, code_version="1")
def books(context: dg.AssetExecutionContext) -> dg.Output[None]:
    return dg.Output(None, data_version=dg.DataVersion(context.run_tags.get("edition", "1")))


@dg.asset_check(asset=books, partitions_def=SOURCES, blocking=True)
def books_are_good() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


@dg.asset(deps=[books], code_version="1")
def library() -> None: ...


@dg.asset(deps=[library], code_version="1")
def release() -> None: ...


DEFINITIONS = dg.Definitions([books, library, release], asset_checks=[books_are_good])


def make(instance: dg.DagsterInstance, asset: str, partition: str | None = None, edition: str = "1") -> str:
    key = dg.AssetKey(asset)
    job = DEFINITIONS.resolve_implicit_job_def_def_for_assets([key])
    assert job is not None
    run = job.execute_in_process(
        instance=instance, partition_key=partition, asset_selection=[key], tags={"edition": edition}
    )
    return run.run_id


def test_what_tells_nothing_of_the_present_is_forgotten():
    graph = DEFINITIONS.resolve_asset_graph()
    with dg.DagsterInstance.ephemeral() as instance:
        runs = [make(instance, "books", source) for source in ("news", "poems", "news")]
        runs += [make(instance, "library"), make(instance, "release")]
        runs += [make(instance, "books", "news", edition="2") for _ in range(3)]

        def judged() -> tuple[object, ...]:
            stale = [
                [c.text for c in causes(instance, graph, (dg.AssetKey(name), None))] for name in ("library", "release")
            ]
            return stale, unmet_checks(instance, graph, dg.AssetKey("release"))

        before = judged()
        assert before == ([["books (news) changed"], []], [])
        assert forget_runs(instance, graph, days=1) == 0, "they are too young"
        assert forget_runs(instance, graph, days=0) == 3
        assert {run.run_id for run in instance.get_runs()} == {*runs[1:5], runs[-1]}
        assert judged() == before


def test_the_models_of_the_newest_trainings_of_each_kind_are_kept(tmp_path):
    mlflow.set_tracking_uri(tracking_uri(tmp_path))
    mlflow.create_experiment(EXPERIMENT, artifact_location=(tmp_path / "mlflow").as_uri())
    mlflow.set_experiment(EXPERIMENT)
    client = mlflow.MlflowClient()
    runs = []
    for name in ("base", "adapter", "base", "base"):
        with mlflow.start_run(run_name=name) as run:
            mlflow.log_metric("loss", 1.0)
            client.log_text(run.info.run_id, "ទម្ងន់", f"{MODEL}/weights")
            runs.append(run.info.run_id)
    assert forget_models(tmp_path, 2) == 1
    assert [bool(client.list_artifacts(run, MODEL)) for run in runs] == [False, True, True, True]
    assert client.get_run(runs[0]).data.metrics == {"loss": 1.0}
    assert forget_models(tmp_path, 2) == 0
