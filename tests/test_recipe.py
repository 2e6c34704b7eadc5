"""Recipes and catalogues: a mistake is told with its place, what was given and what is expected."""

import dagster as dg
import pytest
import yaml
from pydantic_core import to_jsonable_python

from khmer_assets.definitions import build_definitions
from khmer_assets.foundation.settings import RecipeError, Settings, code_version
from khmer_assets.recipe import RECIPES, SAMPLE_RECIPE, Recipe

ADAPTER = {
    "question": "?",
    "min_answer_accuracy": 0.5,
    "finetuning": {"rank": 8, "alpha": 8, "dropout": 0, "learning_rate": 0.1, "warmup_ratio": 0, "batch_size": 1}
    | {"epochs": 1, "checkpoint_every": 1},
}
DECODER = {
    "architecture": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "layers": 1,
    "attention_heads": 4,
    "key_value_heads": 2,
}


@pytest.fixture
def recipe_file(tmp_path):
    """Writes the sample's recipe with changes, beside a catalogue; returns its path."""

    def write(catalogue=None, **changes):
        values = yaml.safe_load(SAMPLE_RECIPE.read_text())
        values["catalogue"] = "sources.yaml"
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                values.setdefault(section, {})[name] = value
            else:
                values[section] = value
        source = {"name": "news", "kind": "files", "license": "CC0", "settings": {"path": "*.txt"}}
        (tmp_path / "sources.yaml").write_text(yaml.safe_dump({"sources": catalogue or [source]}))
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_the_sample_is_whole():
    recipe = Recipe.load(SAMPLE_RECIPE)
    assert recipe.name == "sample"
    assert len(recipe.sources) >= 3


def restated(kind: type[Settings], values: dict, place: str = "") -> list[str]:
    """The keys that are given what they would have been without being given."""
    found = []
    for key, value in values.items():
        field = kind.model_fields[key]
        if isinstance(value, dict) and isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found += restated(field.annotation, value, f"{place}{key}.")
        elif not field.is_required() and value == to_jsonable_python(field.default):
            found.append(f"{place}{key}")
    return found


def test_the_sample_restates_no_default():
    assert restated(Recipe, yaml.safe_load(SAMPLE_RECIPE.read_text())) == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pretraining__steps": -5}, r"pretraining.steps: Input should be greater than 0 \(given: -5\)"),
        ({"pretraining__stepz": 5}, "pretraining.stepz: there is no such key"),
        (
            {"pretraining__decoder": DECODER | {"hidden_size": 250}},
            "hidden_size .250. must be a multiple of attention_heads",
        ),
        ({"mixture__weights": {"khm": 0.5, "eng": 0.4}}, "weights must sum to 1, they sum to 0.9"),
        ({"compression__variants": ["gguf Q9"]}, r"compression\.variants\.0: expected one of pruned, awq, gguf Q4_K_M"),
        (
            {
                "release__variant": "gguf Q8_0",
                "compression__variants": ["gguf Q4_K_M"],
                "adapters": [],
                "failures": None,
            },
            r"recipe: release\.variant \(gguf Q8_0\) is not made; merged is, and what compression\.variants names",
        ),
        (
            {"release__variant": "awq", "pretraining__decoder": DECODER | {"architecture": "gpt2"}},
            r"release\.variant \(awq\) cannot be made: a gpt2 model has Conv1D layers",
        ),
        ({"base": {"model": "Qwen/Qwen2.5-3B"}}, "expected either base"),
        (
            {"base": {"model": "Qwen/Qwen2.5-3B"}, "tokenizer": None},
            "decoder describes a new model, but base names one",
        ),
        ({"base": {"model": "qwen"}, "tokenizer": None}, r"base\.model: expected a hub's name such as"),
        ({"pretraining": None}, "with a tokenizer of its own, a model is trained from scratch"),
        ({"instructions": {}}, "there is no chat to learn from"),
        (
            {"finetuning__runs": {"small": {"rank": 0}}},
            r"finetuning: runs\.small\.rank: Input should be",
        ),
        ({"release__variant": "gguf Q8_0"}, r"release\.variant \(gguf Q8_0\) is served without adapters"),
        (
            {"release__variant": "gguf Q8_0", "adapters": []},
            r"is served without adapters; set adapters: \[\], failures: null",
        ),
        ({"adapters": [ADAPTER | {"name": "failures", "chats": "a.jsonl"}]}, "two adapters are named 'failures'"),
        ({"adapters": [ADAPTER | {"name": "a"}]}, r"adapters\.0: expected either chats \(a file\) or source"),
        ({"serving__port": 99999}, "serving.port"),
        ({"name": "../up"}, r"name: expected small letters, digits and _, beginning with a letter or digit \(given"),
        ({"seed": 2**40}, "seed: Input should be less than 4294967296"),
        ({"pretraining__learning_rate": float("nan")}, "pretraining.learning_rate"),
        ({"pretraining__learning_rate": float("inf")}, "pretraining.learning_rate"),
    ],
)
def test_a_mistake_in_a_recipe_is_told(recipe_file, changes, told):
    with pytest.raises(RecipeError, match=told):
        Recipe.load(recipe_file(**changes))


@pytest.mark.parametrize(
    ("catalogue", "told"),
    [
        ([{"name": "a", "kind": "oracle", "license": "CC0", "settings": {}}], "sources.0.kind"),
        ([{"name": "A b", "kind": "files", "license": "CC0", "settings": {}}], "sources.0.name"),
        ([{"name": "a", "kind": "files", "license": "CC0", "settings": {}}] * 2, "two sources are named 'a'"),
        ("nothing", "expected a list of sources"),
        (
            [{"name": "a", "kind": "files", "license": "CC0", "settings": {"path": b"\xff"}}],
            "sources.0.settings: expect",
        ),
        (["news/*.txt"], r"sources\.yaml: sources\.0: expected keys and values \(given: 'news/\*\.txt'\)"),
        (
            [{"name": "a", "kind": "files", "license": "CC0", "settings": "*.txt"}],
            "sources.0.settings: expected keys",
        ),
    ],
)
def test_a_mistake_in_a_catalogue_is_told(recipe_file, catalogue, told):
    with pytest.raises(RecipeError, match=told):
        _ = Recipe.load(recipe_file(catalogue=catalogue)).sources


def test_a_missing_or_broken_file_is_told(tmp_path, recipe_file):
    recipe = recipe_file()
    (tmp_path / "sources.yaml").unlink()
    with pytest.raises(RecipeError, match=r"recipe\.yaml: catalogue: .*sources\.yaml is no file; put the"):
        Recipe.load(recipe)
    with pytest.raises(RecipeError, match="no such file"):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="cannot be read as YAML"):
        Recipe.load(tmp_path / "broken.yaml")


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_recipe_of_the_project_makes_a_graph(recipe, tmp_path):
    graph = build_definitions(Recipe.load(recipe), tmp_path).resolve_asset_graph()
    assert dg.AssetKey("release") in graph.materializable_asset_keys


def assets_of(recipe: Recipe, tmp_path) -> set[str]:
    return {
        key.to_user_string() for key in build_definitions(recipe, tmp_path).resolve_asset_graph().get_all_asset_keys()
    }


def test_who_brings_a_model_and_chats_gets_no_more_than_that_needs(tmp_path):
    names = assets_of(Recipe.load(RECIPES / "qwen2_5_3b_lora.yaml"), tmp_path)
    assert {"base_model", "chat_dataset", "chat_texts", "sft_adapter", "merged_model", "awq_model", "release"} <= names
    assert not names & {
        "raw_corpus",
        "training_mixture",
        "tokenizer",
        "packed_dataset",
        "base_checkpoint",
        "pruned_model",
    }


def test_what_an_architecture_does_not_allow_is_left_out_with_the_reason(recipe_file, tmp_path):
    recipe = Recipe.load(recipe_file(pretraining__decoder=DECODER | {"architecture": "gpt2"}))
    assert recipe.variants == ["merged", "gguf Q4_K_M", "gguf Q5_K_M", "gguf Q8_0"]
    assert set(recipe.left_out) == {"pruned", "awq"} and "Conv1D" in recipe.left_out["awq"]
    assert not assets_of(recipe, tmp_path) & {"awq_model", "pruned_model", "awq_evaluation"}


def test_adapters_alone_are_served_on_the_model_that_was_brought_in(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        """
extends: qwen2_5_3b_lora
finetuning: null
compression: null
release: {variant: base}
instructions: {files: [chats.jsonl], generated_chats: null}
adapters:
  - {name: help, chats: chats.jsonl, question: សួស្តី, min_answer_accuracy: 0, finetuning: {context_length: 512, rank: 8,
     alpha: 16, dropout: 0, learning_rate: 0.0001, warmup_ratio: 0, batch_size: 2, epochs: 1, checkpoint_every: 10}}
"""
    )
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe.adapters[0].chats == tmp_path / "chats.jsonl"
    names = assets_of(recipe, tmp_path)
    assert {"base_model", "base_evaluation", "domain_adapter", "release", "served_adapter"} <= names
    assert not names & {"sft_adapter", "merged_model"}


def test_a_recipe_extends_another(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "chats.jsonl").touch()
    (tmp_path / "first" / "recipe.yaml").write_text(
        "extends: qwen2_5_3b_lora\nname: first\ninstructions: {files: [chats.jsonl]}\nfinetuning: {patience: 2}\n"
    )
    (tmp_path / "second.yaml").write_text(
        "extends: first/recipe.yaml\nfinetuning: {rank: 8, patience: null}\nseed: 7\n"
    )
    recipe = Recipe.load(tmp_path / "second.yaml")
    assert (recipe.name, recipe.seed, recipe.base.model) == ("first", 7, "Qwen/Qwen2.5-3B-Instruct")
    assert (recipe.finetuning.rank, recipe.finetuning.alpha, recipe.finetuning.patience) == (8, 64, None)
    assert recipe.instructions.files == [tmp_path / "first" / "chats.jsonl"], (
        "a path is relative to where it is written"
    )

    (tmp_path / "circle.yaml").write_text("extends: circle.yaml\n")
    with pytest.raises(RecipeError, match="extends this file in turn"):
        Recipe.load(tmp_path / "circle.yaml")
    (tmp_path / "text.yaml").write_text("extends: sample\ncatalogue: null\n")
    with pytest.raises(RecipeError, match="pretraining needs text: name a catalogue"):
        Recipe.load(tmp_path / "text.yaml")
    (tmp_path / "none.yaml").write_text("extends: nothing\n")
    with pytest.raises(RecipeError, match=r"is no file; name one that ends in \.yaml, or one of gpt2_500m"):
        Recipe.load(tmp_path / "none.yaml")


def test_a_code_version_changes_with_what_is_read_and_with_nothing_else(recipe_file):
    before, after = Recipe.load(SAMPLE_RECIPE), Recipe.load(recipe_file(pretraining__steps=901))
    assert code_version(1, tokenizer=before.tokenizer) == code_version(1, tokenizer=after.tokenizer)
    assert code_version(1, pretraining=before.pretraining) != code_version(1, pretraining=after.pretraining)
    assert code_version(1, tokenizer=before.tokenizer) != code_version(2, tokenizer=before.tokenizer)
