"""The corpus stage as a graph, from files to the mixture, over three small sources of which one has no files."""

import json
import tempfile
from pathlib import Path
from random import Random

import dagster as dg
import polars as pl
import pytest
import yaml

from khmer_assets.corpus.mixture import Mixture
from khmer_assets.definitions import assets_by_stage
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.tokenizer.bpe import KHMER_PATTERN, train_bpe
from resources import batches
from resources.batches import Batches
from resources.compute import Compute
from resources.storage import FoldersIOManager, FramesIOManager, Store
from resources.vector_index import VectorIndex

KHMER = "ព្រះអាទិត្យ ទន្លេសាប សាលារៀន ផ្សារថ្មី ដំណាំស្រូវ មាន់ទា គោក្របី រទេះគោ ទូកដរ សំណាញ់ ក្រមា អង្ករ"
ENGLISH = "sunshine thunder market rice cattle wagons sailing baskets temples spices bicycles mango"
CORPUS = ["raw_corpus", "normalized_corpus", "filtered_corpus"]


@dg.asset(io_manager_key="folders")
def tokenizer() -> Path:
    """Stands for the next stage's, which the report counts tokens with."""
    folder = Path(tempfile.mkdtemp())
    train_bpe(iter(["ក្មេងៗទៅលេង the children"]), 300, KHMER_PATTERN).save(str(folder / "tokenizer.json"))
    return folder


class Graph:
    """The stage's assets with a store in a folder of their own."""

    def __init__(self, recipe: Recipe, folder: Path, ray_address: str = ""):
        parts = assets_by_stage(recipe)["corpus"]
        checks = [part for part in parts if isinstance(part, dg.AssetChecksDefinition)]
        self.store = Store(str(folder / "store"), folder / "cache")
        self.instance = dg.DagsterInstance.ephemeral()
        self.definitions = dg.Definitions(
            assets=[tokenizer, *(part for part in parts if part not in checks)],
            asset_checks=checks,
            resources={
                "frames": FramesIOManager(root=str(folder / "store"), cache=str(folder / "cache")),
                "folders": FoldersIOManager(root=str(folder / "store"), cache=str(folder / "cache")),
                "batches": Batches(home=str(folder), ray_address=ray_address),
                "compute": Compute(home=str(folder)),
                "vector_index": VectorIndex(path=str(folder / "vectors")),
            },
        )

    def run(self, asset: str, partition: str | None = None) -> dg.ExecuteInProcessResult:
        key = dg.AssetKey(asset)
        job = self.definitions.resolve_implicit_job_def_def_for_assets([key])
        assert job is not None
        return job.execute_in_process(
            instance=self.instance, partition_key=partition, asset_selection=[key], raise_on_error=False
        )

    def kept(self, asset: str, partition: str | None = None) -> pl.DataFrame:
        return pl.read_parquet(self.store.current(asset, partition) / "data.parquet")

    def removed(self, asset: str, partition: str | None = None) -> pl.DataFrame:
        return pl.read_parquet(self.store.current(asset, partition) / "removed.parquet")


def recipe_of(folder: Path, sources: dict[str, dict[str, str]]) -> Recipe:
    """The sample's recipe with these sources of kind `files`, for Khmer alone."""
    entries = [{"name": name, "kind": "files", "license": "CC0-1.0", "settings": s} for name, s in sources.items()]
    (folder / "sources.yaml").write_text(yaml.safe_dump({"sources": entries}))
    mixture = Mixture(weights={"khm": 1.0})
    return Recipe.load(SAMPLE_RECIPE).model_copy(update={"catalogue": folder / "sources.yaml", "mixture": mixture})


@pytest.fixture(scope="module")
def small(recipe, tmp_path_factory) -> Recipe:
    """A recipe with three sources, one of which has no files."""
    folder = tmp_path_factory.mktemp("sources")
    khmer, english = [], []
    for number in range(90):
        khmer_words, english_words = (" ".join(Random(number).sample(words.split(), 8)) for words in (KHMER, ENGLISH))
        end = f"ចាប់បានត្រី {number * 7} ក្បាល។ {khmer_words}។"
        khmer.append(f"នៅថ្ងៃទី {number} ក្មេងៗ\u200bទៅលេងនៅមាត់ទន្លេ ហើយ{end}")
        english.append(f"On day {number} the children caught {number * 7} fish and talked of {english_words}.")
    (folder / "pages.jsonl").write_text(
        "\n".join(json.dumps({"km": k, "en": e}) for k, e in zip(khmer, english, strict=True))
    )
    (folder / "lines.txt").write_text("\n".join([khmer[3], "ខ្លី", "ម្តាយធ្វើម្ហូបនៅផ្ទះបាយតាំងពីព្រឹក។"]))
    (folder / "exam.jsonl").write_text(json.dumps({"text": khmer[50]}))
    entries = [
        {"name": "pages", "settings": {"path": "pages.jsonl", "text": ["km", "en"]}},
        {"name": "lines", "settings": {"path": "lines.txt", "split": "line"}},
        {"name": "gone", "settings": {"path": "gone/*.txt"}},
    ]
    catalogue = folder / "sources.yaml"
    catalogue.write_text(
        yaml.safe_dump({"sources": [{"kind": "files", "license": "CC0-1.0", **entry} for entry in entries]})
    )
    mixture = recipe.mixture.model_copy(update={"validation_ratio": 0.2})
    deduplication = recipe.deduplication.model_copy(update={"jaccard": 0.95})
    decontamination = recipe.decontamination.model_copy(update={"evaluation_sets": [{"path": "exam.jsonl"}]})
    return recipe.model_copy(
        update={
            "catalogue": catalogue,
            "mixture": mixture,
            "deduplication": deduplication,
            "decontamination": decontamination,
        }
    )


@pytest.fixture(scope="module")
def graph(small, tmp_path_factory) -> Graph:
    return Graph(small, tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def results(graph):
    runs = [graph.run(asset, source) for source in ("pages", "lines") for asset in CORPUS]
    runs.append(graph.run("dedup_index"))
    runs += [graph.run("deduplicated_corpus", source) for source in ("pages", "lines")]
    runs.append(graph.run("training_mixture"))
    return runs


def test_every_asset_materializes_and_passes_its_checks(results):
    assert all(result.success for result in results)
    checks = [check for result in results for check in result.get_asset_check_evaluations()]
    assert {check.check_name for check in checks} == {
        "no_row_is_lost",
        "text_is_canonical",
        "held_out_text_is_new",
        "set_aside_share_is_steady",
        "weighted_languages_are_present",
        "shares_follow_weights",
        "snapshot_is_recent",
    }
    assert [check.check_name for check in checks if not check.passed] == []


def test_a_held_out_text_with_a_near_copy_among_the_others_fails_its_check(small, graph, results):
    (check,) = [part for part in assets_by_stage(small)["corpus"] if isinstance(part, dg.AssetChecksDefinition)
                and part.check_key.name == "held_out_text_is_new"]  # fmt: skip
    mixture = graph.kept("training_mixture")
    held_out = mixture.filter(split="validation").head(2)
    copies = held_out.with_columns(pl.col("text") + "!", id=pl.lit("copy of ") + pl.col("id"), split=pl.lit("train"))
    verdict = check(training_mixture=pl.concat([mixture, copies]).lazy())
    assert not verdict.passed
    assert verdict.metadata["near_copies"].value == 2


def test_rows_set_aside_say_why(graph, results):
    assert graph.removed("filtered_corpus", "lines").select("rule", "text").rows() == [("too_short", "ខ្លី")]
    (asked,) = graph.removed("filtered_corpus", "pages").iter_rows(named=True)
    assert asked["rule"] == "contaminated"
    assert "exam.jsonl" in asked["reason"]
    (copy,) = graph.removed("deduplicated_corpus", "lines").iter_rows(named=True)
    assert copy["rule"] == "exact_duplicate"
    assert "pages:" in copy["reason"]


def test_the_report_accounts_for_every_row(graph, results):
    assert graph.run("tokenizer").success
    assert graph.run("corpus_report").success
    folder = graph.store.current("corpus_report")
    report = json.loads((folder / "report.json").read_text())
    assert [row["source"] for row in report["Sources"]] == ["pages", "lines"]
    rows_read = sum(row["raw"] for row in report["Sources"])
    rows_left = sum(row["deduplicated"] for row in report["Sources"])
    assert rows_read == rows_left + sum(row["rows"] for row in report["Removed"])
    assert all(row["tokens"] > 0 for row in report["Sources"])
    assert report["Copies between sources"] == [
        {"source": "lines", "kept_in": "pages", "duplicate_rule": "exact_duplicate", "documents": 1}
    ]
    assert report["Clusters"] == [{"size": 2, "clusters": 1, "between_sources": 1}]
    assert "ខ្លី" in (folder / "examples.md").read_text()


def test_numbers_are_put_in_words(graph, results):
    assert graph.run("verbalized_sentences", "pages").success
    pairs = dict(graph.kept("verbalized_sentences", "pages").select("written", "spoken").iter_rows())
    assert pairs["នៅថ្ងៃទី 12 ក្មេងៗទៅលេងនៅមាត់ទន្លេ ហើយចាប់បានត្រី 84 ក្បាល។"] == (
        "នៅថ្ងៃទី ដប់ពីរ ក្មេងៗទៅលេងនៅមាត់ទន្លេ ហើយចាប់បានត្រី ប៉ែតសិបបួន ក្បាល។"
    )


def test_word_marks_are_gone_and_the_language_is_known(graph, results):
    pages = graph.kept("filtered_corpus", "pages")
    assert not pages["text"].str.contains("\u200b").any()
    assert dict(pages.group_by("language").len().iter_rows()) == {"khm": 89, "eng": 90}


def test_the_mixture_holds_what_all_sources_kept(graph, results):
    kept = sum(graph.kept("deduplicated_corpus", source).height for source in ("pages", "lines"))
    assert graph.kept("training_mixture").height == kept == 180


def test_sources_are_observed_each_for_itself(graph):
    result = graph.run("source_files")
    versions = {
        event.event_specific_data.asset_observation.partition: event.event_specific_data.asset_observation.tags[
            "dagster/data_version"
        ]
        for event in result.all_events
        if event.event_type == dg.DagsterEventType.ASSET_OBSERVATION
    }
    assert versions["gone"] == "missing"
    assert len(versions["pages"]) == len(versions["lines"]) == 64


def test_a_source_without_files_fails_with_what_to_do(graph):
    result = graph.run("raw_corpus", "gone")
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "put the files there" in failure.user_failure_data.description


def test_a_source_that_leaves_the_catalogue_makes_what_is_made_of_all_sources_stale(recipe, tmp_path):
    entries = yaml.safe_load(recipe.catalogue.read_text())["sources"]
    versions = []
    for number in (len(entries), len(entries) - 1):
        catalogue = tmp_path / f"{number}.yaml"
        catalogue.write_text(yaml.safe_dump({"sources": entries[:number]}))
        parts = assets_by_stage(recipe.model_copy(update={"catalogue": catalogue}))["corpus"]
        assets = {part.key.to_user_string(): part for part in parts if type(part) is dg.AssetsDefinition}
        versions.append({name: asset.code_versions_by_key[asset.key] for name, asset in assets.items()})
    changed = {name for name in versions[0] if versions[0][name] != versions[1][name]}
    assert changed == {"corpus_report", "dedup_index", "training_mixture"}


@pytest.mark.slow
def test_two_ray_nodes_make_the_same_artifacts(graph, results, small, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(batches, "ROWS", 16)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        far = Graph(small, tmp_path, cluster.address)
        assert all(far.run(asset, source).success for source in ("pages", "lines") for asset in CORPUS)
        assert far.run("dedup_index").success
    finally:
        cluster.shutdown()
    artifacts = [(asset, source) for source in ("pages", "lines") for asset in CORPUS] + [("dedup_index", None)]
    assert {a: far.store.current(*a).name for a in artifacts} == {a: graph.store.current(*a).name for a in artifacts}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (["ទឹក", "ដី"], "no document is left of any source: see which rules set them aside"),
        (["The children went to the river."], "all 1 documents are in languages without a weight: add theirs to"),
        (["ក្មេងៗទៅលេងនៅមាត់ទន្លេ ហើយចាប់បានត្រី។"], "1 documents are too few to train on some and hold 4% out: add"),
    ],
)
def test_a_corpus_of_which_too_little_is_left_says_why(tmp_path, lines, told):
    (tmp_path / "few.txt").write_text("\n".join(lines))
    graph = Graph(recipe_of(tmp_path, {"few": {"path": "few.txt", "split": "line"}}), tmp_path)
    assert all(graph.run(asset, "few").success for asset in CORPUS)
    assert graph.run("dedup_index").success
    assert graph.run("deduplicated_corpus", "few").success
    (failed,) = [event for event in graph.run("training_mixture").all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data.description.startswith(told)


def test_a_source_that_cannot_be_read_hides_no_change_of_another(tmp_path):
    (tmp_path / "good.txt").write_text("ទឹក")
    (tmp_path / "bad.txt").symlink_to("/proc/self/mem")  # opens, and gives an error when it is read
    graph = Graph(recipe_of(tmp_path, {name: {"path": f"{name}.txt"} for name in ("bad", "good")}), tmp_path)

    def versions() -> dict[str, str]:
        result = graph.run("source_files")
        assert result.success
        seen = [event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()]
        return {one.partition: one.tags["dagster/data_version"] for one in seen}

    before = versions()
    (tmp_path / "good.txt").write_text("ទឹក\nទឹកភ្លៀង")
    after = versions()
    assert before["good"] != after["good"]
    assert before["bad"] == after["bad"]
    assert graph.run("raw_corpus", "bad").success
    (row,) = graph.removed("raw_corpus", "bad").iter_rows(named=True)
    assert row["reason"].startswith("bad.txt: cannot be read at its beginning: [Errno 5]")
