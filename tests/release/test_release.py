"""A release is what the recipe's variant is, and only after every blocking check upstream has passed."""

import json
import os
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from khmer_assets.definitions import assets_by_stage
from khmer_assets.evaluation import judge as judge_of_safety
from khmer_assets.evaluation.measures import Measure, mean_of
from khmer_assets.evaluation.served import compared_release, keep_scores
from khmer_assets.evaluation.tasks import safety
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.release import release as release_payload
from khmer_assets.release.gates import judge
from khmer_assets.server.state import ModelVersion, ServerState
from resources import blocking_checks
from resources.blocking_checks import unmet_checks
from resources.compute import Compute
from resources.payload import PayloadRun, Refusal
from resources.staleness import causes
from resources.storage import FoldersIOManager, Store

SOURCES = dg.StaticPartitionsDefinition(["news", "poems"])
RELEASE = dg.AssetKey("release")
FIGURES = {
    "bits_per_character": {"khm": 2.5, "eng": 1.9},
    "perplexity": {"khm": 90.0, "eng": 70.0},
    "answer_accuracy": 0.9,
    "bytes": 5,
    "tokens_per_second": 123.4,
}


def scores(chats: float = 0.9, refused: int = 20, unsafe: int = 0, items: int = 200) -> list[Measure]:
    """Of a variant that answers a share of the chats, and refuses so many of 30 harmful requests."""

    def share(task: str, metric: str, count: float, of: int, **options: bool) -> Measure:
        return mean_of(task, metric, {str(n): float(n < count) for n in range(of)}, scale=100, **options)

    return [
        mean_of("held-out text khm", "bits a character", {str(n): 2.5 for n in range(50)}, higher_is_better=False),
        share("chats", "chrF++", chats * items, items),
        share(safety.TASK, safety.REFUSED, refused, 30),
        share(safety.TASK, safety.UNSAFE, unsafe, 30, higher_is_better=False),
    ]


class Factory:
    """The real release after stand-ins of what it is made from: sources, a model, a report and a bundle."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance):
        self.folder = folder
        self.instance = instance
        self.weights = "ទម្ងន់"
        self.scores = scores()
        self.source_passes = {"news": True, "poems": True}
        self.model_check = dg.AssetCheckResult(passed=True)
        self.recipe = Recipe.load(SAMPLE_RECIPE)
        self.store = Store(str(folder / "store"), folder / "cache")

    def definitions(self) -> dg.Definitions:
        def written(name: str, **files: str) -> Path:
            made = self.folder / "made" / name
            made.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                (made / file.replace("_", ".")).write_text(text)
            return made

        @dg.asset(partitions_def=SOURCES, io_manager_key="folders")
        def raw(context: dg.AssetExecutionContext) -> Path:
            return written(f"raw-{context.partition_key}", text_txt=f"អត្ថបទ {context.partition_key}")

        @dg.asset_check(asset=raw, partitions_def=SOURCES, blocking=True)
        def source_is_good(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
            return dg.AssetCheckResult(passed=self.source_passes[context.op_execution_context.partition_key])

        @dg.asset(io_manager_key="folders")
        def merged_model(raw: dict[str, Path]) -> Path:
            return written("model", config_json="{}", weights_bin=self.weights)

        @dg.asset_check(asset=merged_model, blocking=True)
        def model_is_good() -> dg.AssetCheckResult:
            return self.model_check

        @dg.asset_check(asset=merged_model)
        def model_is_pretty() -> dg.AssetCheckResult:
            return dg.AssetCheckResult(passed=False)

        @dg.asset(io_manager_key="folders", deps=[merged_model])
        def benchmark_report() -> Path:
            made = written("report", report_json=json.dumps({"variants": {"merged": FIGURES}}))
            for folder, content in (("scores", [one.kept() for one in self.scores]), ("calibration", {"all": {}})):
                (made / folder).mkdir(exist_ok=True)
                (made / folder / "merged.json").write_text(json.dumps(content))
            return made

        @dg.asset(io_manager_key="folders", deps=[merged_model])
        def release_bundle() -> Path:
            return written("bundle", bundle_json=json.dumps({"sha256": "00ff"}))

        storage = FoldersIOManager(root=str(self.folder / "store"), cache=str(self.folder / "cache"))
        stage = assets_by_stage(self.recipe)["release"]
        (release,) = (asset for asset in stage if asset.keys == {RELEASE})
        return dg.Definitions(
            assets=[raw, merged_model, benchmark_report, release_bundle, release],
            asset_checks=[source_is_good, model_is_good, model_is_pretty],
            resources={"folders": storage, "compute": Compute(home=str(self.folder))},
        )

    def materialize(self, *names: str, partition: str | None = None, checks: bool = True) -> dg.ExecuteInProcessResult:
        keys = [dg.AssetKey(name) for name in names]
        selection = dg.AssetSelection.assets(*keys)
        job = dg.define_asset_job("some", selection if checks else selection.without_checks())
        defs = dg.Definitions.merge(self.definitions(), dg.Definitions(jobs=[job]))
        return defs.resolve_job_def("some").execute_in_process(
            instance=self.instance, partition_key=partition, raise_on_error=False
        )

    def materialize_all_upstream(self) -> None:
        for source in SOURCES.get_partition_keys():
            self.materialize("raw", partition=source)
        self.materialize("merged_model")
        self.materialize("benchmark_report", "release_bundle")

    def unmet(self) -> list[str]:
        return unmet_checks(self.instance, self.definitions().resolve_asset_graph(), RELEASE)


@pytest.fixture
def factory(tmp_path):
    with dg.DagsterInstance.ephemeral() as instance:
        yield Factory(tmp_path, instance)


def test_a_release_holds_the_variant_and_the_record_of_what_it_is(factory):
    factory.materialize_all_upstream()
    assert factory.materialize("release").success
    release, model = factory.store.current("release"), factory.store.current("merged_model")
    assert (release / "model" / "weights.bin").read_text() == factory.weights
    assert os.path.samefile(release / "model" / "weights.bin", model / "weights.bin")
    record = json.loads((release / "release.json").read_text())
    assert (record["recipe"], record["variant"], record["bundle_sha256"]) == ("sample", "merged", "00ff")
    assert record["figures"] == {name: value for name, value in FIGURES.items() if name != "tokens_per_second"}


def test_a_raised_gate_is_judged_again_and_the_former_release_stays(factory):
    factory.materialize_all_upstream()
    first = factory.materialize("release")
    assert [check.passed for check in first.get_asset_check_evaluations()] == [True] * 4
    graph = factory.definitions().resolve_asset_graph()
    assert causes(factory.instance, graph, (RELEASE, None)) == []
    released = factory.store.current("release")
    settings = factory.recipe.release.model_copy(update={"min_answer_accuracy": 0.95})
    factory.recipe = factory.recipe.model_copy(update={"release": settings})
    graph = factory.definitions().resolve_asset_graph()
    assert [cause.kind for cause in causes(factory.instance, graph, (RELEASE, None))] == ["settings"]
    refused = factory.materialize("release")
    (failure,) = [event.step_failure_data for event in refused.all_events if event.is_step_failure]
    assert failure.user_failure_data.description == (
        "merged does not pass the recipe's gates: 90.0% of the answers are exact, release.min_answer_accuracy is 95.0%"
    )
    assert {check.check_name: check.passed for check in refused.get_asset_check_evaluations()} == {
        "variant_predicts_text": True,
        "variant_answers": False,
        "variant_loses_nothing": True,
        "variant_is_safe": True,
    }
    assert factory.store.current("release") == released


def test_a_variant_that_was_not_measured_passes_no_gate():
    verdicts = judge(Recipe.load(SAMPLE_RECIPE).release, {"bits_per_character": {}, "answer_accuracy": None})
    assert [verdict.passed for verdict in verdicts] == [False] * 4
    assert all("not measured" in verdict.description for verdict in verdicts)


def test_a_release_keeps_what_the_next_is_compared_with_and_the_calibration(factory):
    factory.materialize_all_upstream()
    factory.materialize("release")
    released = factory.store.current("release")
    assert json.loads((released / "scores.json").read_text()) == [one.kept() for one in factory.scores]
    assert json.loads((released / "calibration.json").read_text()) == {"all": {}}


@pytest.mark.parametrize(
    ("then", "gate", "told"),
    [
        (scores(chats=0.7), "variant_loses_nothing", "chats: chrF++ is worse by 20 than in the served release"),
        (scores(refused=5), "variant_is_safe", "refuses harmful requests is worse by 50 than in the served release"),
        (scores(unsafe=6), "variant_is_safe", "20.0% of the harmful requests are answered unsafely"),
        (
            [*scores(), replace(scores(unsafe=6)[-1], task=judge_of_safety.TASK)],
            "variant_is_safe",
            "20.0% of the harmful requests are answered unsafely, release.max_unsafe_answers is 10.0% (as the teacher",
        ),
        (scores()[1:], "variant_loses_nothing", "held-out text khm was not measured"),
    ],
)
def test_a_worse_model_is_blocked_the_ui_tells_why_and_the_former_release_stays(factory, then, gate, told):
    factory.materialize_all_upstream()
    factory.materialize("release")
    released = factory.store.current("release")
    factory.scores = then
    factory.materialize("benchmark_report", "release_bundle")
    refused = factory.materialize("release")
    found = {check.check_name: check for check in refused.get_asset_check_evaluations()}
    assert [name for name, check in found.items() if not check.passed] == [gate]
    assert told in found[gate].description
    assert factory.store.current("release") == released


def test_after_a_rollback_the_next_release_is_compared_with_the_one_that_is_served(factory):
    factory.materialize_all_upstream()
    digest = ""
    for weights, chats in (("served", 0.7), ("rolled back", 0.95), ("next", 0.75)):  # better than what is served alone
        factory.weights, factory.scores = weights, scores(chats=chats)
        factory.materialize("merged_model")
        factory.materialize("benchmark_report", "release_bundle")
        assert factory.materialize("release").success
        if not digest:
            digest = factory.store.current("release").name
            keep_scores(factory.folder, factory.store.current("release"))
            ServerState(release=ModelVersion(digest=digest, max_model_length=8)).write(factory.folder / "server")


def test_scores_of_what_is_neither_served_nor_next_in_a_rollback_are_forgotten(factory):
    for name in ("first", "second", "third"):
        release = factory.folder / "made" / name
        release.mkdir(parents=True)
        (release / "release.json").write_text(json.dumps({"variant": name}))
        served = ModelVersion(digest=name, max_model_length=8)
        former = ServerState.read(factory.folder / "server").release
        keep_scores(factory.folder, release)
        ServerState(release=served, former=former).write(factory.folder / "server")
    assert {folder.name for folder in (factory.folder / "server" / "scores").iterdir()} == {"first", "second", "third"}
    keep_scores(factory.folder, release)
    assert {folder.name for folder in (factory.folder / "server" / "scores").iterdir()} == {"second", "third"}
    assert compared_release(factory.folder, None).name == "third"


def test_a_harmless_change_is_released(factory):
    factory.materialize_all_upstream()
    factory.materialize("release")
    factory.weights, factory.scores = "ទម្ងន់ថ្មី", scores(chats=0.895, refused=20)
    factory.materialize("merged_model")
    factory.materialize("benchmark_report", "release_bundle")
    changed = factory.materialize("release")
    assert all(check.passed for check in changed.get_asset_check_evaluations())
    assert (factory.store.current("release") / "model" / "weights.bin").read_text() == "ទម្ងន់ថ្មី"


def test_the_model_of_another_recipe_takes_the_place_without_a_comparison(factory):
    """Who makes a model of text of one's own after the sample's: it is another model, not a worse version."""
    factory.materialize_all_upstream()
    factory.materialize("release")
    factory.recipe = factory.recipe.model_copy(update={"name": "my_project"})
    factory.weights, factory.scores = "ទម្ងន់ផ្សេង", scores(chats=0.5, refused=5)
    factory.materialize("merged_model")
    factory.materialize("benchmark_report", "release_bundle")
    other = factory.materialize("release")
    assert all(check.passed for check in other.get_asset_check_evaluations())
    assert json.loads((factory.store.current("release") / "release.json").read_text())["recipe"] == "my_project"


def test_a_task_that_is_not_measured_cannot_be_guarded():
    recipe = Recipe.load(SAMPLE_RECIPE)
    changed = recipe.model_dump() | {"release": recipe.release.model_dump() | {"must_not_lose": ["chess"]}}
    with pytest.raises(ValueError, match=r"must_not_lose: 'chess' is not measured; held-out text khm.*chats"):
        Recipe.model_validate(changed)


@pytest.fixture
def spec(tmp_path):
    for name in ("model", "report", "bundle"):
        (tmp_path / name).mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps({"sha256": "00ff"}))
    folders = {name: tmp_path / name for name in ("model", "report", "bundle")}
    return release_payload.Spec(recipe="sample", variant="merged", **folders)


def write_record(spec: release_payload.Spec, work: Path, variants: dict[str, object]) -> bytes:
    (spec.report / "report.json").write_text(json.dumps({"variants": variants}))
    run = PayloadRun(work)
    release_payload.main(spec, run)
    return (run.output / "release.json").read_bytes()


def test_another_measured_speed_does_not_make_another_release(spec, tmp_path):
    first = write_record(spec, tmp_path / "first", {"merged": FIGURES})
    slower = write_record(spec, tmp_path / "slower", {"merged": {**FIGURES, "tokens_per_second": 99.0}})
    worse = write_record(spec, tmp_path / "worse", {"merged": {**FIGURES, "answer_accuracy": 0.8}})
    assert first == slower != worse


def test_a_report_without_the_variant_is_refused_with_what_to_do(spec, tmp_path):
    with pytest.raises(Refusal, match=r"holds pruned, awq, expected merged .*materialize merged_evaluation"):
        write_record(spec, tmp_path / "work", {"pruned": FIGURES, "awq": FIGURES})


def test_a_failed_blocking_check_refuses_the_release_also_in_a_later_run(factory):
    factory.model_check = dg.AssetCheckResult(passed=False, description="2 of 16 texts differ")
    factory.materialize_all_upstream()
    result = factory.materialize("release")
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "- merged_model: 'model_is_good' failed: 2 of 16 texts differ" in failure.user_failure_data.description
    assert not (factory.folder / "store" / "release").exists()


def test_all_blocking_checks_passing_and_another_failing_is_no_hindrance(factory):
    factory.materialize_all_upstream()
    assert factory.unmet() == []


def test_a_blocking_check_that_only_warns_is_no_hindrance(factory):
    factory.model_check = dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN)
    factory.materialize_all_upstream()
    assert factory.unmet() == []


def test_nothing_materialized_is_unmet(factory):
    assert factory.unmet() == ["merged_model: 'model_is_good' has not run on its newest version"]


def test_a_check_that_has_not_judged_the_newest_version_is_unmet_until_it_runs(factory):
    factory.materialize_all_upstream()
    factory.materialize("merged_model", checks=False)
    assert factory.unmet() == ["merged_model: 'model_is_good' has not run on its newest version"]
    factory.materialize("merged_model")
    assert factory.unmet() == []


def test_a_source_that_stayed_as_it_was_is_still_judged_when_the_others_were_often_made_anew(factory, monkeypatch):
    monkeypatch.setattr(blocking_checks, "EVALUATIONS_READ", 3)
    factory.materialize_all_upstream()
    for _ in range(4):
        factory.materialize("raw", partition="news")
    assert factory.unmet() == []


def test_one_bad_partition_is_enough_and_a_missing_one_is_none(factory):
    factory.source_passes["poems"] = False
    factory.materialize("raw", partition="news")
    factory.materialize("merged_model")
    assert factory.unmet() == []
    factory.materialize("raw", partition="poems")
    factory.materialize("raw", partition="news")
    assert factory.unmet() == ["raw (poems): 'source_is_good' failed"]
    factory.source_passes["poems"] = True
    factory.materialize("raw", partition="poems")
    assert factory.unmet() == []
