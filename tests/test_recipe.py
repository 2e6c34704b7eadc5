"""Recipes and catalogues: a mistake is told with its place, what was given and what is expected."""

import pytest
import yaml
from pydantic_core import to_jsonable_python

from khmer_assets.foundation.settings import RecipeError, Settings, code_version
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe

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
        ({"compression__gguf": ["Q9"]}, "compression.gguf.0"),
        (
            {"release__variant": "gguf Q8_0", "compression__gguf": ["Q4_K_M"], "adapters": []},
            r"recipe: release\.variant \(gguf Q8_0\) must be in compression\.gguf",
        ),
        ({"release__variant": "gguf Q8_0"}, r"release\.variant \(gguf Q8_0\) is served without adapters"),
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


def test_a_code_version_changes_with_what_is_read_and_with_nothing_else(recipe_file):
    before, after = Recipe.load(SAMPLE_RECIPE), Recipe.load(recipe_file(pretraining__steps=901))
    assert code_version(1, tokenizer=before.tokenizer) == code_version(1, tokenizer=after.tokenizer)
    assert code_version(1, pretraining=before.pretraining) != code_version(1, pretraining=after.pretraining)
    assert code_version(1, tokenizer=before.tokenizer) != code_version(2, tokenizer=before.tokenizer)
