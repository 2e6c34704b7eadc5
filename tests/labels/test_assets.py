"""From a teacher's server and a person's file to a corpus with labels, as a graph over two sources."""

import json
from zlib import crc32

import dagster as dg
import polars as pl
import pytest
import yaml

from khmer_assets.definitions import assets_by_stage
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.labels.assets import label_assets
from khmer_assets.labels.settings import Labels
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.batches import Batches
from resources.compute import Compute
from resources.instance import ON_DEMAND
from resources.storage import FoldersIOManager, FramesIOManager, Store
from resources.teachers import Teachers
from tests.labels.conftest import documents, judge, text_of
from tests.teachers.hosts import host

SOURCES = ["news", "poems"]


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(SOURCES), io_manager_key="frames")
def deduplicated_corpus(context: dg.AssetExecutionContext) -> pl.LazyFrame:
    """Stands for the corpus stage."""
    return documents(context.partition_key, 240).lazy()


class Graph:
    """The stage's assets with a store in a folder of their own, and teachers."""

    def __init__(self, folder, settings: Labels, teachers=()):
        servers = [teacher.model_dump(mode="json", exclude_none=True) for teacher in teachers]
        parts = label_assets(settings, teachers, SOURCES, seed=1)
        checks = [part for part in parts if isinstance(part, dg.AssetChecksDefinition)]
        self.store = Store(str(folder / "store"), folder / "cache")
        self.instance = dg.DagsterInstance.ephemeral()
        self.definitions = dg.Definitions(
            assets=[deduplicated_corpus, *(part for part in parts if part not in checks)],
            asset_checks=checks,
            resources={
                "frames": FramesIOManager(root=str(folder / "store"), cache=str(folder / "cache")),
                "folders": FoldersIOManager(root=str(folder / "store"), cache=str(folder / "cache")),
                "batches": Batches(home=str(folder)),
                "compute": Compute(home=str(folder)),
                "teachers": Teachers(home=str(folder), teachers=servers),
            },
        )
        for source in SOURCES:
            assert self.run("deduplicated_corpus", source).success

    def run(self, asset: str, partition: str | None = None) -> dg.ExecuteInProcessResult:
        key = dg.AssetKey(asset)
        job = self.definitions.resolve_implicit_job_def_def_for_assets([key])
        assert job is not None
        return job.execute_in_process(
            instance=self.instance, partition_key=partition, asset_selection=[key], raise_on_error=False
        )

    def rows(self, asset: str, partition: str | None = None, file: str = "data") -> pl.DataFrame:
        return pl.read_parquet(self.store.current(asset, partition) / f"{file}.parquet")


def metadata_of(result: dg.ExecuteInProcessResult) -> dict:
    (made,) = result.get_asset_materialization_events()
    return {name: value.value for name, value in made.materialization.metadata.items()}


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    assert not result.success
    (failed,) = [event for event in result.all_node_events if event.is_step_failure]
    return str(failed.step_failure_data.error)


@pytest.mark.slow
def test_teachers_label_a_sample_a_model_learns_it_and_the_corpus_gets_it(tmp_path):
    text, _ = text_of(5)
    corrections = tmp_path / "corrections.jsonl"
    lines = [{"text": text, "topics": ["law"]}, {"id": "news-5"}]
    corrections.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    settings = Labels(documents=120, corrections=corrections, keep={"good_quality": True}, budget={"requests": 10})
    with host(judge) as server:
        graph = Graph(tmp_path, settings, [server.teacher(prompt_price=1.0, answer_price=2.0)])
        first = metadata_of(graph.run("document_labels", "news"))
        assert (first["teachers_requests"], first["documents_not_asked"]) == (10, 20)  # ten documents a request
        again = metadata_of(graph.run("document_labels", "news"))
        assert (again["teachers_requests"], again["documents_not_asked"]) == (2, 0)
        assert graph.run("document_labels", "poems").success
        assert len(server.seen) == 12  # the same texts, which nobody pays twice
    for told in ("| topics | health | ", "| validity | truth | ", "| quality | 9 | "):
        assert told in first["labels"]
    assert "| teacher | sage | 100 | 10 | " in first["teachers"]
    assert metadata_of(graph.run("label_corrections"))["rows_removed"] == 1
    learned = graph.run("label_model")
    figures = metadata_of(learned)
    assert figures["documents"] == 240
    assert figures["documents_of_persons"] >= 1
    assert figures["topics_f1"] > 0.8
    assert [check.passed for check in learned.get_asset_check_evaluations()] == [True]
    labelled = graph.run("labelled_corpus", "news")
    assert {check.check_name: check.passed for check in labelled.get_asset_check_evaluations()} == {
        "no_row_is_lost": True,
        "set_aside_share_is_steady": True,
    }
    kept, removed = graph.rows("labelled_corpus", "news"), graph.rows("labelled_corpus", "news", "removed")
    assert (kept.height + removed.height, set(removed["rule"])) == (240, {"low_quality"})
    assert removed.height == pytest.approx(60, abs=10)  # every fourth is poor
    assert kept["topics"].list.len().min() >= 1


@pytest.mark.slow
def test_persons_are_enough_and_a_model_that_learned_nothing_fails_its_check(tmp_path):
    topics = ["law", "food", "arts", "science", "history"]
    lines = [{"text": text_of(n)[0], "topics": [topics[crc32(str(n).encode()) % 5]]} for n in range(200)]
    (tmp_path / "corrections.jsonl").write_text("\n".join(map(json.dumps, lines)))
    graph = Graph(tmp_path, Labels(corrections=tmp_path / "corrections.jsonl", keep={"safe": True}))
    assert graph.run("label_corrections").success
    result = graph.run("label_model")
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "F1 of topics is below 0.4: label more documents, or correct some" in (check.description or "")
    told = failure_of(graph.run("labelled_corpus", "news"))
    assert "labels.keep or labels.weights ask for unsafe, which nobody has labelled" in told


@pytest.mark.slow
def test_what_cannot_be_used_is_told(tmp_path):
    graph = Graph(tmp_path, Labels(corrections=tmp_path / "gone.jsonl"))
    assert "gone.jsonl cannot be read" in failure_of(graph.run("label_corrections"))
    (tmp_path / "gone.jsonl").write_text("")
    assert graph.run("label_corrections").success
    told = failure_of(graph.run("label_model"))
    assert "0 documents have labels, expected at least 100" in told


@pytest.fixture
def recipe(tmp_path):
    def load(**values) -> Recipe:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({"extends": str(SAMPLE_RECIPE), **values}))
        return Recipe.load(file)

    return load


def names(stages) -> set[str]:
    assets = [part for part in stages.get("labels", []) if isinstance(part, dg.AssetsDefinition)]
    return {key.to_user_string() for part in assets for key in part.keys}


def inputs_of_mixture(stages) -> set[str]:
    (mixture,) = [p for p in stages["corpus"] if isinstance(p, dg.AssetsDefinition)
                  and p.keys == {dg.AssetKey("training_mixture")}]  # fmt: skip
    return {key.to_user_string() for key in mixture.dependency_keys}


TEACHER = {"name": "sage", "address": "http://127.0.0.1:1/v1", "model": "sage"}


def test_labels_are_in_the_graph_where_the_recipe_has_them_and_in_the_mixture_where_it_says_so(recipe):
    assert names(assets_by_stage(recipe())) == set()
    stages = assets_by_stage(recipe(teachers=[TEACHER], labels={}))
    assert {"document_labels", "label_corrections", "label_model", "labelled_corpus"} <= names(stages)
    assert inputs_of_mixture(stages) == {"deduplicated_corpus"}
    (model,) = [
        p for p in stages["labels"] if isinstance(p, dg.AssetsDefinition) and dg.AssetKey("label_model") in p.keys
    ]
    assert ON_DEMAND.items() <= model.tags_by_key[dg.AssetKey("label_model")].items()
    stages = assets_by_stage(recipe(teachers=[TEACHER], labels={"weights": {"topics": {"health": 2}}}))
    assert inputs_of_mixture(stages) == {"labelled_corpus"}
    assert "document_labels" not in names(assets_by_stage(recipe(labels={"corrections": "mine.jsonl"})))


def test_labels_that_nobody_gives_are_a_mistake(recipe):
    with pytest.raises(RecipeError, match=r"nobody gives labels: name teachers, or labels.corrections"):
        recipe(labels={})
