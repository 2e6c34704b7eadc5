"""The items and the report as Dagster makes them."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest

from khmer_assets.definitions import assets_by_stage
from khmer_assets.evaluation.measures import mean_of
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.compute import Compute
from resources.staleness import causes
from resources.storage import FoldersIOManager, FramesIOManager


def stage(recipe: Recipe) -> dict[str, Any]:
    found = assets_by_stage(recipe)["evaluation"]
    return {one.key.to_user_string(): one for one in found if not isinstance(one, dg.AssetChecksDefinition)}


def with_tasks(*tasks: dict[str, Any]) -> Recipe:
    values = Recipe.load(SAMPLE_RECIPE).model_dump()
    return Recipe.model_validate(values | {"evaluation": values["evaluation"] | {"tasks": list(tasks)}})


def test_items_of_all_tasks_are_one_table_and_bad_rows_are_set_aside(tmp_path):
    (tmp_path / "test.tsv").write_text("index_id\tcategory\ttext\n1\tsports\tកីឡាករ\n2\tcooking\tម្ហូប\n")
    recipe = with_tasks({"task": "belebele", "items": 2}, {"task": "sib200", "data": str(tmp_path / "test.tsv")})
    assets = stage(recipe)
    frames = FramesIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    made = dg.materialize([assets["task_files"], assets["evaluation_items"]], resources={"frames": frames})
    assert made.success
    kept = frames.store.current("evaluation_items")
    assert pl.read_parquet(kept / "data.parquet")["task"].to_list() == ["belebele khm_Khmr"] * 2 + ["sib200 khm_Khmr"]
    assert pl.read_parquet(kept / "removed.parquet")["rule"].to_list() == ["unknown_answer"]


def test_files_that_are_missing_fail_with_what_to_do(tmp_path):
    recipe = with_tasks({"task": "sib200", "data": str(tmp_path / "missing")})
    assets = stage(recipe)
    frames = FramesIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    parts = [assets["task_files"], assets["evaluation_items"]]
    made = dg.materialize(parts, resources={"frames": frames}, raise_on_error=False)
    (failure,) = [event.step_failure_data for event in made.all_events if event.is_step_failure]
    assert "missing is not there; put the files there" in failure.user_failure_data.description


def test_a_recipe_without_tasks_has_no_items():
    assert "evaluation_items" not in stage(with_tasks())


@pytest.mark.slow
def test_the_report_compares_with_the_last_release(tmp_path):
    recipe = Recipe.load(SAMPLE_RECIPE)
    recipe = recipe.model_copy(update={"compression": recipe.compression.model_copy(update={"variants": []})})
    measure = mean_of("chats", "chrF++", {str(n): float(n % 3 > 0) for n in range(30)}, scale=100)
    figures = {"bits_per_character": {"khm": 2.0}, "perplexity": {"khm": 9.0}, "answer_accuracy": 0.5, "bytes": 9}
    evaluation = {"variant": "merged", **figures, "memory_mb": 5, "tokens_per_second": 80.0, "answers": []}

    def written(name: str, files: dict[str, Any]) -> Path:
        made = tmp_path / "made" / name
        made.mkdir(parents=True)
        for file, content in files.items():
            (made / file).write_text(json.dumps(content))
        return made

    @dg.asset(io_manager_key="folders")
    def merged_evaluation() -> Path:
        told = evaluation | {"measures": [measure.told()]}
        return written("evaluation", {"evaluation.json": told, "scores.json": [measure.kept()]})

    folders = FoldersIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    release = written("release", {"release.json": {"variant": "merged"}, "scores.json": [measure.kept()]})
    folders.store.commit(release, "release")
    given = [dg.AssetSpec(name) for name in ("training_mixture", "chat_dataset", "evaluation_items", "merged_model")]
    assets = stage(recipe)
    shown = (assets[name] for name in ("compared_evaluation", "export_comparison", "benchmark_report"))
    parts = [*given, merged_evaluation, *shown]
    resources = {"folders": folders, "compute": Compute(home=str(tmp_path))}
    names = ["merged_evaluation", "benchmark_report"]
    with dg.DagsterInstance.ephemeral() as instance:
        assert dg.materialize(parts, selection=names, resources=resources, instance=instance).success
        graph = dg.Definitions(assets=parts, resources=resources).resolve_asset_graph()
        assert causes(instance, graph, (dg.AssetKey("benchmark_report"), None)) == []  # though nothing was compared
    report = folders.store.current("benchmark_report")
    (change,) = json.loads((report / "report.json").read_text())["changes"]
    assert (change["name"], change["verdict"]) == ("chats: chrF++", "alike")
    assert {"report.html", "report.md", "quality.png", "speed.png", "scores"} <= {f.name for f in report.iterdir()}
