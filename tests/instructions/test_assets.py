"""chat_dataset and the checks that guard it."""

import json
from random import Random

import dagster as dg
import polars as pl
import pytest

from khmer_assets.corpus.decontamination import Decontamination
from khmer_assets.instructions.assets import chat_checks, instruction_assets
from khmer_assets.instructions.chats import CHAT, Split, new_chat
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.storage import FramesIOManager

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
    frames = FramesIOManager(root=str(store / "store"), cache=str(store / "cache"))
    result = dg.materialize(PARTS, resources={"frames": frames})
    return result, pl.read_parquet(frames.store.current("chat_dataset") / "data.parquet")


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
