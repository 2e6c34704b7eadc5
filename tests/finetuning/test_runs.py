"""Several trainings side by side: the best of them is merged, with the base that it was trained on."""

import json

import dagster as dg
import pytest

from khmer_assets.definitions import build_definitions
from khmer_assets.finetuning import runs
from khmer_assets.recipe import Recipe
from resources.payload import PayloadRun, Refusal

TWO_BASES = """extends: qwen2_5_3b_lora
finetuning:
  runs: {qwen: {}, small: {rank: 8}, llama: {}}
  bases: {llama: {model: meta-llama/Llama-3.2-3B-Instruct}}
"""


def save_adapter(folder, bits, loss):
    folder.mkdir()
    point = {"step": 1, "loss": loss}
    training = {"curve": [point], "model": "m", "validation_loss": loss, "validation_bits_per_character": bits}
    (folder / "training.json").write_text(json.dumps(training))
    (folder / "adapter_config.json").write_text('{"r": 8}')
    return folder


def test_the_best_is_that_with_the_fewest_bits_a_character_whatever_a_token_is(tmp_path):
    adapters = {
        "few_long_tokens": save_adapter(tmp_path / "a", bits=0.5, loss=2.1),
        "many_short_tokens": save_adapter(tmp_path / "b", bits=0.9, loss=0.7),
        "not_scored": save_adapter(tmp_path / "c", bits=None, loss=None),
    }
    run = PayloadRun(tmp_path / "work")
    figures = runs.main(runs.Spec(adapters=adapters), run)
    assert figures["best_run"] == "few_long_tokens" and "![" in figures["loss_curves"]
    base, other = tmp_path / "base", tmp_path / "other"
    assert runs.base_of(run.output, base, {"base_model_few_long_tokens": other}) == other
    assert runs.base_of(run.output, base, {"base_model_many_short_tokens": other}) == base
    assert runs.base_of(adapters["not_scored"], base, {}) == base  # the only training of a recipe without runs
    with pytest.raises(Refusal, match=r"raise instructions\.split\.validation"):
        runs.main(runs.Spec(adapters={"one": adapters["not_scored"]}), PayloadRun(tmp_path / "none"))


def test_the_graph_brings_in_each_base_and_asks_the_merged_model_by_its_own_tokenizer(tmp_path):
    (tmp_path / "recipe.yaml").write_text(TWO_BASES)
    graph = build_definitions(Recipe.load(tmp_path / "recipe.yaml"), tmp_path).resolve_asset_graph()

    def parents(asset):
        return {key.to_user_string() for key in graph.get(dg.AssetKey(asset)).parent_keys}

    assert {"base_model", "base_model_llama"} <= parents("sft_adapter") & parents("merged_model")
    assert graph.get(dg.AssetKey("sft_adapter")).partitions_def.get_partition_keys() == ["qwen", "small", "llama"]
    assert "base_model" not in parents("merged_evaluation")
