"""The router is in the graph where the recipe has one, is made on demand, and is stopped where it gains nothing."""

import json
from pathlib import Path

import dagster as dg
import pytest

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.recipe import Recipe
from khmer_assets.router.assets import router_assets
from khmer_assets.router.train import Routing
from khmer_assets.server.router_file import ABOUT
from khmer_assets.server.state import ServerState
from resources.instance import ON_DEMAND
from resources.model_server import ModelServer
from resources.storage import FoldersIOManager
from tests.server.routers import ROUTED, learned

TEACHER = "[{name: large, address: 'http://127.0.0.1:9/v1', model: m, key_variable: LARGE_KEY}]"


def assets(settings):
    return router_assets(settings, None, "merged_model", {"failures": ("failure_adapter", "failure_chats")}, 256, 48, 1)


def test_without_settings_there_are_none_and_with_them_they_are_made_on_demand():
    assert assets(None) == []
    router, _, served = assets(Routing())
    parents = {"merged_model", "chat_dataset", "domain_adapter", "adapter_chats", "failure_adapter", "failure_chats"}
    assert {key.to_user_string() for key in router.dependency_keys} == parents
    for asset in (router, served):
        assert all(tags.items() >= ON_DEMAND.items() for tags in asset.tags_by_key.values())


@pytest.mark.parametrize("right", [0.9, 0.45])
def test_the_check_stops_one_that_gains_nothing(tmp_path, right):
    learned().save(tmp_path)
    about = json.loads((tmp_path / ABOUT).read_text())
    about["figures"]["router"] = right
    (tmp_path / ABOUT).write_text(json.dumps(about))
    _, check, _ = assets(Routing())
    (spec,) = check.check_specs
    result = check.op.compute_fn.decorated_fn(tmp_path)
    assert spec.blocking and isinstance(result, dg.AssetCheckResult)
    assert result.passed is (right > 0.5) and f"{right:.1%} right with the router" in result.description


@pytest.mark.parametrize(("adapter", "is_served"), [("failures", True), ("numbers", False)])
def test_a_check_of_an_adapter_that_the_router_does_not_know_is_no_hindrance(tmp_path, adapter, is_served):
    """Such as that of failures, of which nobody has made an adapter yet."""

    @dg.asset
    def failure_chats() -> None: ...

    @dg.asset_check(asset="failure_chats", blocking=True)
    def chats_are_new() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False)

    @dg.asset(deps=[failure_chats])
    def failure_adapter() -> None: ...

    @dg.asset(io_manager_key="folders", deps=[failure_adapter])
    def router() -> Path:
        (tmp_path / "router").mkdir()
        learned().save(tmp_path / "router")
        return tmp_path / "router"

    *_, served = router_assets(
        Routing(), None, "merged_model", {adapter: ("failure_adapter", "failure_chats")}, 9, 9, 1
    )
    ServerState(release=ROUTED).write(tmp_path / "server")
    folders = FoldersIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    resources = {"folders": folders, "model_server": ModelServer(home=str(tmp_path), port=8399)}
    graph = [failure_chats, chats_are_new, failure_adapter, router, served]
    with dg.DagsterInstance.ephemeral() as instance:
        dg.materialize(graph, selection=[router], resources=resources, instance=instance)
        result = dg.materialize(graph, selection=[served], resources=resources, instance=instance, raise_on_error=False)
    assert result.success is is_served
    if not is_served:
        data = result.failure_data_for_node("served_router")
        assert "- failure_chats: 'chats_are_new' has not run" in data.user_failure_data.description


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("adapters: null\nrouter: {}", "set adapters, or remove it"),
        ("router: {stronger: large}", r"none of the teachers \(none\)"),
        ("router: {threshold: 2}", "router.threshold"),
        ("router: {}\nserving: {embedder: ./x}", None),
        (f"teachers: {TEACHER}\nrouter: {{stronger: large}}", None),
    ],
)
def test_what_a_recipe_may_say(tmp_path, lines, told):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"extends: sample\n{lines}\n")
    if told:
        with pytest.raises(RecipeError, match=told):
            Recipe.load(file)
        return
    recipe = Recipe.load(file)
    found = recipe.stronger
    assert found is None or (found.name, found.model, found.key_variable) == ("large", "m", "LARGE_KEY")


def test_no_adapter_has_the_name_under_which_the_router_answers(tmp_path):
    adapter = "{name: auto, chats: a.jsonl, question: a, min_answer_accuracy: 0, finetuning: "
    adapter += "{rank: 8, alpha: 8, dropout: 0, learning_rate: 0.1, warmup_ratio: 0, batch_size: 1, epochs: 1, "
    file = tmp_path / "recipe.yaml"
    file.write_text(f"extends: sample\nadapters: [{adapter}checkpoint_every: 1}}}}]\nrouter: {{}}\n")
    with pytest.raises(RecipeError, match="an adapter is named 'auto', as khmer-auto is served"):
        Recipe.load(file)
