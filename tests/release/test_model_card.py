"""The model card tells what a reader must know before the model is used."""

import json

from khmer_assets.evaluation.measures import mean_of
from khmer_assets.recipe import RECIPES, SAMPLE_RECIPE, Recipe
from khmer_assets.release.model_card import model_card
from khmer_assets.training.models import load_model

SOURCE = {"name": "village_news", "kind": "files", "language": "khm", "license": "CC-BY-4.0", "settings": {}}


def test_the_card_names_sources_licenses_settings_and_measures(model, tmp_path):
    recipe = Recipe.load(SAMPLE_RECIPE).model_dump(mode="json", exclude={"catalogue"}) | {"context_length": 256}
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (tmp_path / "merge.json").write_text(json.dumps({"bfloat16_top1_agreement": 0.987}))
    scores = [mean_of("belebele khm_Khmr", "accuracy", {"1": 1.0, "2": 0.0, "3": 1.0, "4": 1.0}, scale=100)]
    card = model_card("sample-merged", "merged", tmp_path, recipe, [SOURCE], None, scores)

    assert "| village_news | files | khm | CC-BY-4.0 |" in card
    assert f"learning_rate: {recipe['finetuning']['learning_rate']}" in card
    assert "0.987" in card
    assert f"| parameters | {load_model(model).num_parameters():,} |" in card
    assert "| belebele khm_Khmr: accuracy | 75 | 25 and 100 | 4 |" in card
    assert 'from_pretrained("sample-merged")' in card
    assert "vllm serve sample-merged" in card


def test_the_card_names_the_base_and_its_license(model):
    recipe = Recipe.load(RECIPES / "qwen2_5_3b_lora.yaml").model_dump(mode="json") | {"context_length": 2048}
    base = {"model": "Qwen/Qwen2.5-3B-Instruct", "revision": "0123456789abcdef", "license": "qwen-research"}
    card = model_card("lora-merged", "merged", model, recipe, [], base)
    assert "| base | Qwen/Qwen2.5-3B-Instruct 0123456789ab |" in card
    assert "| license of the base | qwen-research |" in card
    assert "No corpus." in card
