"""chat_dataset and the checks that guard it."""

import dagster as dg
import polars as pl
import pytest

from khmer_assets.instructions.assets import instruction_assets
from khmer_assets.instructions.chats import CHAT, NEW_CHAT, Split, new_chat, split_chats
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.storage import FramesIOManager

RECIPE = Recipe.load(SAMPLE_RECIPE)
PARTS = instruction_assets(RECIPE.instructions, RECIPE.seed)
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


def test_content_in_two_splits_fails_the_check(materialized):
    _, chats = materialized
    leaked = chats.head(1).with_columns(split=pl.lit("test" if chats["split"][0] != "test" else "train"))
    assert not verdict("splits_share_no_content", pl.concat([chats, leaked]))


def test_a_missing_split_fails_the_check(materialized):
    _, chats = materialized
    assert not verdict("shares_are_near_the_split", chats.filter(pl.col("split") != "test"))
    assert not verdict("shares_are_near_the_split", chats.clear())


def test_an_unanswered_chat_fails_the_check():
    rows = [new_chat("a", "here", "eng", "greeting", ["Hello"])]
    split = Split(train=1, validation=0, test=0)
    faulty = split_chats(pl.LazyFrame(rows, schema=NEW_CHAT), split).collect()
    assert not verdict("chats_are_valid", faulty.select(CHAT.names()))
