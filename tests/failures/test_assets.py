"""The assets of failures: in one job, on demand, and with new chats of which none is held out."""

import dagster as dg
import polars as pl
import pytest

from khmer_assets.corpus.semantic import SemanticSearch
from khmer_assets.definitions import assets_by_stage, build_definitions
from khmer_assets.failures.assets import JOB_ASSETS
from khmer_assets.failures.clusters import clustered
from khmer_assets.failures.find import FAILURE, failure
from khmer_assets.instructions.chats import prompt_of
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.instance import ON_DEMAND
from resources.storage import FramesIOManager
from tests.failures.small import chats


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    sample = Recipe.load(SAMPLE_RECIPE)
    return sample.model_copy(
        update={"instructions": sample.instructions.model_copy(update={"generated_chats": 40})}, deep=True
    )


def test_one_job_leads_from_failures_to_what_is_served_and_is_no_part_of_a_run(recipe, tmp_path):
    defs = build_definitions(recipe, tmp_path)
    graph = defs.resolve_asset_graph()
    job = defs.resolve_job_def("learn_from_failures")
    keys = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert keys == set(JOB_ASSETS)
    assert job.partitions_def is None, "nothing is to be chosen before it is launched"
    for key in job.asset_layer.executable_asset_keys:
        assert ON_DEMAND.items() <= graph.get(key).tags.items()
        for child in graph.get(key).child_keys:
            assert child.to_user_string() in keys, f"{child} would wait for {key}"
    upstream = graph.get(dg.AssetKey("failure_release")).parent_keys
    assert dg.AssetKey("failure_measurement") in upstream, "its check guards the release"


def test_a_recipe_without_the_part_has_none_of_it(recipe, tmp_path):
    without = recipe.model_copy(update={"failures": None})
    assert assets_by_stage(without)["failures"] == []
    defs = build_definitions(without, tmp_path)
    assert "learn_from_failures" not in {job.name for job in defs.resolve_all_job_defs()}


def test_new_chats_are_near_the_failures_and_none_is_held_out(recipe, tmp_path):
    dataset = chats()
    held_out = dataset.filter(pl.col("split") != "train")
    rows = [
        failure("chats", one["id"], one["messages"][:-1], "?", one["messages"][-1]["content"], "not exactly so")
        for one in held_out.to_dicts()
    ]
    found = clustered(pl.DataFrame(rows, schema=FAILURE), SemanticSearch(), seed=1)
    frames = FramesIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))

    @dg.asset(io_manager_key="frames")
    def chat_dataset() -> pl.LazyFrame:
        return dataset.lazy()

    @dg.asset(io_manager_key="frames")
    def failure_clusters() -> pl.LazyFrame:
        return found.lazy()

    stage = assets_by_stage(recipe)["failures"]
    assets = [one for one in stage if not isinstance(one, dg.AssetChecksDefinition)]
    (new,) = [one for one in assets if one.key == dg.AssetKey("failure_chats")]
    result = dg.materialize([chat_dataset, failure_clusters, new], resources={"frames": frames})
    assert result.success
    folder = frames.store.current("failure_chats")
    made, removed = pl.read_parquet(folder / "data.parquet"), pl.read_parquet(folder / "removed.parquet")
    prompts = {prompt_of(messages) for messages in held_out["messages"].to_list()}
    assert not prompts & {prompt_of(messages) for messages in made["messages"].to_list()}
    assert made["cluster"].is_not_null().all() and set(made["cluster"]) <= set(found["cluster"])
    assert set(dataset.filter(split="train")["id"]) & set(made["id"]), "chats about colors are near"
    assert set(removed["rule"]) <= {"held_out", "duplicate_chat", "near_duplicate"}
