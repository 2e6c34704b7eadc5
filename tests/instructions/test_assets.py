"""chat_dataset and the checks that guard it."""

import json
from pathlib import Path
from random import Random
from typing import Any

import dagster as dg
import polars as pl
import pytest

from khmer_assets.corpus.decontamination import Decontamination
from khmer_assets.foundation.home import home as state  # one for all: MLflow takes a second for each
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.instructions.assets import chat_checks, instruction_assets
from khmer_assets.instructions.chat_sources import Instructions
from khmer_assets.instructions.chats import CHAT, Split, new_chat
from khmer_assets.instructions.tutor_tasks import BY_RULES
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sample.composition import SAMPLE
from khmer_assets.sources.documents import content_hash
from khmer_assets.teachers.settings import Teacher
from resources.payload import PayloadRun
from resources.storage import FramesIOManager
from resources.teachers import Teachers
from tests.teachers.hosts import Request, Response, completion, host, smollm2

RECIPE = Recipe.load(SAMPLE_RECIPE)
PARTS = instruction_assets(
    RECIPE.instructions, RECIPE.decontamination, RECIPE.folder, RECIPE.normalization, True, RECIPE.seed
)
CHECKS = {part.check_key.name: part for part in PARTS if isinstance(part, dg.AssetChecksDefinition)}


def verdict(check: str, chats: pl.DataFrame) -> bool:
    result = CHECKS[check](chats.lazy())
    assert isinstance(result, dg.AssetCheckResult)
    return result.passed


@pytest.fixture(scope="module")
def materialized(tmp_path_factory) -> tuple[dg.ExecuteInProcessResult, pl.DataFrame]:
    store = tmp_path_factory.mktemp("store")
    result, frames = materialize(PARTS, store)
    return result, pl.read_parquet(frames.store.current("chat_dataset") / "data.parquet")


def materialize(
    parts: list[Any], home: Path, teachers: list[Teacher] | None = None, **settings: Any
) -> tuple[dg.ExecuteInProcessResult, FramesIOManager]:
    frames = FramesIOManager(root=str(home / "store"), cache=str(home / "cache"))
    plain = [teacher.model_dump(mode="json", exclude_none=True) for teacher in teachers or []]
    resources = {"frames": frames, "teachers": Teachers(home=str(state()), teachers=plain)}
    return dg.materialize(parts, resources=resources, **settings), frames


def test_the_asset_is_written_and_passes_its_checks(materialized):
    result, chats = materialized
    assert result.success
    assert {e.check_name: e.passed for e in result.get_asset_check_evaluations()} == dict.fromkeys(CHECKS, True)
    assert chats.schema == CHAT
    assert chats.height > RECIPE.instructions.generated_chats
    metadata = result.asset_materializations_for_node("chat_dataset")[0].metadata
    assert "greeting" in str(metadata["chats_by_category"].value)
    assert metadata["dagster/row_count"].value == chats.height


def test_every_check_blocks():
    assert all(spec.blocking for check in CHECKS.values() for spec in check.check_specs)


def chats(count: int, split: str, start: int = 0) -> pl.DataFrame:
    """Chats of one split that have little in common."""
    rng = Random(start)
    rows = [
        {**new_chat(f"{split}-{n}", "here", "khm", "greeting", [words(rng), words(rng)]), "content_hash": "",
         "split": split}
        for n in range(count)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=CHAT)


def words(rng: Random) -> str:
    return "".join(chr(rng.randrange(0x1780, 0x17A3)) for _ in range(60))


DIFFERENT = pl.concat([chats(20, "train", 1), chats(10, "validation", 2), chats(10, "test", 3)])


def test_held_out_chats_that_are_nearly_those_of_training_fail_the_check():
    copies = (
        DIFFERENT.filter(split="train").head(3).with_columns(id=pl.lit("copy-") + pl.col("id"), split=pl.lit("test"))
    )
    changed = pl.col("messages").list.eval(
        pl.struct(pl.element().struct["role"], pl.element().struct["content"].str.replace(r".$", "!"))
    )
    assert verdict("held_out_chats_are_new", DIFFERENT)
    assert not verdict("held_out_chats_are_new", pl.concat([DIFFERENT, copies.with_columns(changed)]))


def test_a_missing_split_fails_the_check():
    assert verdict("every_split_has_chats", DIFFERENT)
    assert not verdict("every_split_has_chats", DIFFERENT.filter(pl.col("split") != "test"))
    assert not verdict("every_split_has_chats", DIFFERENT.clear())


def test_a_chat_of_an_evaluation_set_fails_the_check(tmp_path):
    def verdict_with(text: str) -> dg.AssetCheckResult:
        (tmp_path / "exam.jsonl").write_text(json.dumps({"text": text}))
        sets = Decontamination(evaluation_sets=[{"path": "exam.jsonl"}])
        checks = chat_checks("chats", Split(), sets, tmp_path, RECIPE.normalization)
        (check,) = [check for check in checks if check.check_key.name == "no_chat_is_of_an_evaluation_set"]
        return check(DIFFERENT.lazy())  # type: ignore[return-value]  # a check that is called gives its result

    first = DIFFERENT["messages"][0]
    assert verdict_with(words(Random(9))).passed
    found = verdict_with(first[1]["content"])
    assert not found.passed and found.description and "train-0" in found.description


@dg.asset(io_manager_key="frames")
def training_mixture() -> pl.LazyFrame:
    """Twenty stories and sentences in two languages, with a text that is held out."""
    names = ("everyday_sentences.txt", "english_readings.txt")
    texts = [text for name in names for text in (SAMPLE / name).read_text(encoding="utf-8").split("\n")[:40] if text]
    splits = ["train"] * (len(texts) - 1) + ["validation"]
    rows = [
        (f"t:{n}", text, content_hash(text), split) for n, (text, split) in enumerate(zip(texts, splits, strict=True))
    ]
    return pl.LazyFrame(rows, schema=["id", "text", "content_hash", "split"], orient="row")


SOURCES = """
sources:
  - {name: own, kind: embedded, license: Apache-2.0, settings: {generated_chats: 50}}
  - {name: mine, kind: chat_files, license: CC-BY-4.0, settings: {path: "*.jsonl"}}
  - {name: asked, kind: questions_and_answers, license: mine, settings: {documents: 12, topics: [ស្រូវ], each: 2}}
  - {name: talks, kind: dialogues, license: mine, settings: {documents: 8, turns: 2}}
  - {name: tutor, kind: tutor_tasks, license: mine, settings: {count: 60}}
split: {train: 0.6, validation: 0.2, test: 0.2}
"""


def taught(request: Request) -> Response:
    """A teacher that follows its instructions, in the language that is asked for."""
    about = dict(line.partition(": ")[::2] for line in request.texts[0].splitlines())
    khmer = about.get("Language") == "Khmer"
    own = content_hash(request.texts[0])[:8]
    if "Directive" in about:
        say = about["Directive"]
        output = f"ចម្លើយទី {own} ។ វាសំខាន់។ វាងាយយល់។" if khmer else f"It is {own}. It is good. It is plain."
        instruction = f"{say}អំពី{own}អត្ថបទនេះឲ្យបានច្បាស់" if khmer else f"{say} what {own} says of this text"
        return completion({"instruction": instruction, "input": "", "output": output})
    if "Exchanges" in about:
        first, second = ("តើនេះជាអ្វី?", "ចុះវានៅឯណា?") if khmer else ("What is the boat called?", "And where is it?")
        said = "នៅក្នុងភូមិ" if khmer else "in the village"
        turns = [{"user": f"{first} {own}", "assistant": f"{said} {own}"}, {"user": second, "assistant": said}]
        return completion({"system": "Help.", "turns": turns})
    if "level" in json.dumps(request.body):
        return completion({"level": "A2", "reason": "ពាក្យងាយៗ។"})
    sentence = about["Sentence"]
    return completion({"lines": [{"speaker": "ក", "text": sentence}, {"speaker": "ខ", "text": sentence}]})


def recipe_with(folder: Path, sources: str, **teachers: Any) -> Recipe:
    (folder / "recipe.yaml").write_text(
        f"extends: sample\nname: mine\nteachers: {json.dumps(teachers.get('teachers', []))}\ninstructions:\n"
        + "\n".join(f"  {line}" for line in ["generated_chats: null", *sources.strip().splitlines()])
    )
    return Recipe.load(folder / "recipe.yaml")


def parts_of(recipe: Recipe) -> list[Any]:
    return instruction_assets(
        recipe.instructions,
        recipe.decontamination,
        recipe.folder,
        recipe.normalization,
        False,
        recipe.seed,
        recipe.teachers,
    )


def test_all_that_is_written_goes_into_the_dataset_and_nothing_is_asked_twice(tmp_path):
    lines = [{"instruction": f"តើ {n} បូក {n} ស្មើប៉ុន្មាន?", "output": f"ស្មើ {2 * n}"} for n in range(5)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with host(taught) as running:
        teacher = running.teacher(name="local")
        recipe = recipe_with(tmp_path, SOURCES, teachers=[teacher.model_dump(mode="json")])
        parts = [training_mixture, *parts_of(recipe)]
        result, frames = materialize(parts, tmp_path, recipe.teachers)
        assert result.success
        asked = len(running.seen)
        assert materialize(parts, tmp_path, recipe.teachers)[0].success
        assert len(running.seen) == asked
    chats = pl.read_parquet(frames.store.current("chat_dataset") / "data.parquet")
    counts = dict(chats.group_by("source").len().iter_rows())
    assert counts["mine"] == 5 and counts["own"] > 250 and counts["talks"] == 8
    assert counts["asked"] == 26 and set(chats.filter(source="asked")["language"]) == {"khm", "eng"}
    tasks = dict(chats.filter(source="tutor").group_by("task").len().iter_rows())
    assert set(tasks) == {*BY_RULES, "vocabulary", "dialogue"} and tasks["vocabulary"] == 12
    metadata = result.asset_materializations_for_node("questions_and_answers")[0].metadata
    assert metadata["teachers_requests"].value == 26
    shown = str(result.asset_materializations_for_node("chat_dataset")[0].metadata["chats_by_source"].value)
    assert "vocabulary" in shown and "asked" in shown


def test_a_tutors_tasks_by_rules_need_no_teacher(tmp_path):
    recipe = recipe_with(tmp_path, "sources: [{name: tutor, kind: tutor_tasks, license: mine}]")
    result, frames = materialize([training_mixture, *parts_of(recipe)], tmp_path)
    assert result.success
    chats = pl.read_parquet(frames.store.current("chat_dataset") / "data.parquet")
    assert set(chats["task"]) == set(BY_RULES)


def test_a_budget_that_ends_leaves_a_whole_asset_that_goes_on_next_time(tmp_path):
    sources = "sources: [{name: asked, kind: questions_and_answers, license: mine, settings: SETTINGS}]"
    with host(taught) as running:
        plain = [running.teacher(model="thrifty").model_dump(mode="json")]
        rows = []
        for requests in (4, 20):
            settings = json.dumps({"documents": 10, "budget": {"requests": requests}})
            recipe = recipe_with(tmp_path, sources.replace("SETTINGS", settings), teachers=plain)
            parts = [training_mixture, *parts_of(recipe)]
            selection = dg.AssetSelection.assets("training_mixture", "questions_and_answers")
            result, frames = materialize(parts, tmp_path, recipe.teachers, selection=selection)
            assert result.success
            rows.append(pl.read_parquet(frames.store.current("questions_and_answers") / "data.parquet").height)
        assert rows == [4, 10] and len(running.seen) == 10


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ("sources: [{name: a, kind: robots, license: x, settings: {}}]", "instructions.sources.0"),
        ("sources: [{name: a, kind: chat_files, license: x, settings: {}}]", "settings.path: is missing"),
        ("sources: [{name: a, kind: chat_files, settings: {path: x}}]", "license: is missing"),
        (
            "sources: [{name: a, kind: dialogues, license: x, settings: {}}]",
            "'a' is about nothing: set documents or topics",
        ),
        (
            "sources: [{name: a, kind: dialogues, license: x, settings: {topics: [x]}}]",
            "'a' is written by teachers: set teachers",
        ),
        (
            "sources: [{name: a, kind: tutor_tasks, license: x, settings: {tasks: [vocabulary]}}]",
            "'a' is written by teachers: set teachers",
        ),
        (
            "sources: [{name: a, kind: tutor_tasks, license: x}, {name: a, kind: tutor_tasks, license: x}]",
            "two sources are named 'a'",
        ),
    ],
)
def test_a_mistake_in_the_sources_is_told_with_its_place(sources, told, tmp_path):
    with pytest.raises(RecipeError, match=told):
        recipe_with(tmp_path, sources)


def test_a_source_of_the_corpus_needs_a_catalogue(tmp_path):
    source = {"name": "a", "kind": "tutor_tasks", "license": "x"}
    (tmp_path / "recipe.yaml").write_text(
        f"extends: qwen2_5_3b_lora\ninstructions: {{sources: [{json.dumps(source)}]}}"
    )
    with pytest.raises(RecipeError, match="'a' is made of the corpus: name a catalogue of sources"):
        Recipe.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(("min_quality", "labelled"), [(7, True), (7, False), (None, True)])
def test_the_label_model_judges_chats_where_a_quality_is_asked_for(min_quality, labelled):
    settings = Instructions(generated_chats=10, min_quality=min_quality)
    parts = instruction_assets(settings, Decontamination(), Path(), RECIPE.normalization, False, 1, [], labelled)
    (dataset,) = [part for part in parts if isinstance(part, dg.AssetsDefinition) and "chat_dataset" in str(part.keys)]
    judged = dg.AssetKey("label_model") in dataset.dependency_keys
    assert judged == (min_quality is not None and labelled)


def test_files_that_are_not_there_fail_with_what_to_do(tmp_path):
    settings = Instructions.model_validate(
        {
            "sources": [
                {"name": "mine", "kind": "chat_files", "license": "x", "settings": {"path": str(tmp_path / "no.jsonl")}}
            ]
        }
    )
    parts = instruction_assets(settings, Decontamination(), tmp_path, RECIPE.normalization, False, 1)
    with pytest.raises(
        dg.Failure, match=r"the source 'mine' cannot be read.*correct instructions\.sources in the recipe"
    ):
        materialize(parts, tmp_path)


@pytest.mark.slow
def test_what_a_real_small_teacher_writes_goes_into_a_finetuning(tmp_path, model):
    """SmolLM2 knows no Khmer and follows few instructions: its answers all fit the schema, and those that do not fit
    the task are set aside by its rules."""
    from khmer_assets.finetuning import sft
    from tests.finetuning.test_sft import SETTINGS

    (tmp_path / "directives.yaml").write_text("directives: {khm: [{say: សូម}], eng: [{say: the}]}")
    topics = (SAMPLE / "english_readings.txt").read_text(encoding="utf-8").split("\n\n")[:6]
    asked = {"topics": topics, "max_answer_tokens": 160, "directives": "directives.yaml"}
    talks = {"topics": topics[:1], "turns": 2, "max_answer_tokens": 128}
    sources = f"""
sources:
  - {{name: asked, kind: questions_and_answers, license: x, settings: {json.dumps(asked)}}}
  - {{name: talks, kind: dialogues, license: x, settings: {json.dumps(talks)}}}
  - {{name: tutor, kind: tutor_tasks, license: x, settings: {{count: 60, tasks: [correction, fluency]}}}}
"""
    with smollm2() as teacher:
        recipe = recipe_with(tmp_path, sources, teachers=[teacher.model_dump(mode="json", exclude_none=True)])
        result, frames = materialize([training_mixture, *parts_of(recipe)], tmp_path, recipe.teachers)
    assert result.success
    written = 0
    for asset, rows in (("questions_and_answers", 6), ("dialogues", 1)):
        folder = frames.store.current(asset)
        kept, removed = pl.read_parquet(folder / "data.parquet"), pl.read_parquet(folder / "removed.parquet")
        assert kept.height + removed.height == rows
        assert not set(removed["rule"]) & {"no_json", "out_of_schema"}
        written += kept.height
    chats = frames.store.current("chat_dataset")
    counts = dict(pl.read_parquet(chats / "data.parquet").group_by("source").len().iter_rows())
    assert counts.pop("tutor") == 60 and sum(counts.values()) == written > 0
    run = PayloadRun(tmp_path / "work")
    settings = SETTINGS.model_copy(update={"epochs": 1})
    figures = sft.main(sft.Spec(base=model, chats=chats, settings=settings, context_length=256, seed=1), run)
    assert (run.output / "adapter_model.safetensors").exists() and figures
