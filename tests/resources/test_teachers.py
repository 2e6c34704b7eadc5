"""An asset asks teachers: what it paid is in its metadata and in MLflow, and a mistake is one message."""

import dagster as dg
import mlflow
import pytest

from khmer_assets.teachers.settings import Budget
from resources.teachers import Teachers
from resources.tracking import tracking_uri
from tests.teachers.hosts import TOPICS, host, rows


def topics_asset():
    @dg.asset
    def topics(context: dg.AssetExecutionContext, teachers: Teachers) -> dg.MaterializeResult:
        answers, asked = teachers.ask(context, TOPICS, rows(6), Budget())
        return dg.MaterializeResult(metadata={"answers": len(answers), **asked.metadata()})

    return topics


@pytest.mark.slow  # MLflow makes its database
def test_what_was_paid_is_in_the_metadata_and_in_mlflow(tmp_path):
    with host() as server:
        teacher = server.teacher(prompt_price=1, answer_price=1).model_dump(mode="json", exclude_none=True)
        resources = {"teachers": Teachers(home=str(tmp_path), teachers=[teacher])}
        result = dg.materialize([topics_asset()], resources=resources)
        again = dg.materialize([topics_asset()], resources=resources)
    (made,), (made_again,) = (
        result.asset_materializations_for_node("topics"),
        again.asset_materializations_for_node("topics"),
    )
    assert made.metadata["teachers_cost"].value == pytest.approx(6 * 110 / 1e6)
    assert "| teacher | 6 | 0 | 600 | 60 |" in made.metadata["teachers_costs_by_day"].value
    assert made_again.metadata["teachers_requests"].value == 0
    client = mlflow.MlflowClient(tracking_uri(tmp_path))
    (run,) = client.search_runs([client.get_experiment_by_name("khmer").experiment_id])
    assert (run.info.run_name, run.info.status) == ("topics", "FINISHED")
    assert run.data.metrics["prompt_tokens"] == 600


@pytest.mark.parametrize(
    ("teachers", "says"), [([], "no teacher is set"), ([{"key_variable": "NO_KEY"}], "NO_KEY is not set")]
)
def test_a_mistake_is_one_message(tmp_path, teachers, says):
    with host() as server:
        found = [server.teacher(**settings).model_dump(mode="json", exclude_none=True) for settings in teachers]
        with pytest.raises(dg.Failure, match=says):
            dg.materialize([topics_asset()], resources={"teachers": Teachers(home=str(tmp_path), teachers=found)})
