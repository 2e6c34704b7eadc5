"""The assets of adapters, from the chats that users bring."""

import dagster as dg
import polars as pl

from khmer_assets.definitions import assets_by_stage
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from resources.storage import FramesIOManager


def test_the_chats_of_an_adapter_are_those_of_its_file(tmp_path):
    recipe = Recipe.load(SAMPLE_RECIPE)
    chats = recipe.adapters[0].chats
    assets = assets_by_stage(recipe)["adapters"][:2]  # adapter_files and adapter_chats
    frames = FramesIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    result = dg.materialize(assets, partition_key=recipe.adapters[0].name, resources={"frames": frames})
    assert result.success
    rows = pl.read_parquet(frames.store.current("adapter_chats", recipe.adapters[0].name) / "data.parquet")
    assert rows.height == len(chats.read_text().splitlines())
    assert set(rows["split"]) == {"train", "validation", "test"}
