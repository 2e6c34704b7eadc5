"""The assets of adapters, from the chats that users bring."""

import dagster as dg
import polars as pl
import pytest

from khmer_assets.definitions import assets_by_stage
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.instance import ON_DEMAND_PARTITIONS
from resources.storage import FramesIOManager


@pytest.fixture
def frames(tmp_path) -> FramesIOManager:
    return FramesIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))


def test_an_adapters_chats_may_be_made_and_it_may_be_left_out_of_a_run(frames):
    recipe = Recipe.load(SAMPLE_RECIPE)
    tutor = recipe.adapters[1]
    assert tutor.source is not None and tutor.on_demand
    small = tutor.model_copy(update={"source": tutor.source.model_copy(update={"chats": 100})})
    recipe = recipe.model_copy(update={"adapters": [recipe.adapters[0], small]})
    assets = [one for one in assets_by_stage(recipe)["adapters"] if not isinstance(one, dg.AssetChecksDefinition)]
    for asset in assets[1:]:
        assert asset.metadata_by_key[asset.key][ON_DEMAND_PARTITIONS] == ["tutor"]
    assert dg.materialize(assets[:2], partition_key="tutor", resources={"frames": frames}).success
    rows = pl.read_parquet(frames.store.current("adapter_chats", "tutor") / "data.parquet")
    assert set(rows["split"]) == {"train", "validation", "test"} and rows["task"].n_unique() == 5


def test_the_chats_of_an_adapter_are_those_of_its_file(frames):
    recipe = Recipe.load(SAMPLE_RECIPE)
    chats = recipe.adapters[0].chats
    assets = assets_by_stage(recipe)["adapters"][:2]  # adapter_files and adapter_chats
    result = dg.materialize(assets, partition_key=recipe.adapters[0].name, resources={"frames": frames})
    assert result.success
    rows = pl.read_parquet(frames.store.current("adapter_chats", recipe.adapters[0].name) / "data.parquet")
    assert rows.height == len(chats.read_text().splitlines())
    assert set(rows["split"]) == {"train", "validation", "test"}
