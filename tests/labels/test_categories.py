"""The categories are those that the project names, and a mistake in a file of others is told."""

import re

import pytest
import yaml
from jsonschema import Draft202012Validator

from khmer_assets.foundation.settings import RecipeError, validated
from khmer_assets.labels.categories import CATEGORIES, answer_schema, heads
from khmer_assets.labels.settings import Labels
from tests.labels.conftest import text_of, verdict

KHMER = re.compile(r"[\u1780-\u17dd ]+")


def test_there_are_nineteen_topics_and_fifteen_kinds_of_harm_each_with_a_khmer_name(categories):
    assert (len(categories.topics), len(categories.toxicity)) == (19, 15)
    assert list(categories.validity) == ["truth", "majority", "invalid"]
    assert list(categories.claim) == ["true", "false", "unknown"]
    for question in (categories.validity, categories.claim, categories.toxicity, categories.topics):
        assert all(KHMER.fullmatch(names.km) for names in question.values())


def test_a_whole_verdict_fits_the_schema_and_others_do_not(categories):
    judge = Draft202012Validator(answer_schema(categories))
    whole = verdict(text_of(1)[0])
    assert judge.is_valid(whole)
    for fault in ({"topics": []}, {"topics": ["rice", "law"]}, {"accuracy": 4}, {"validity": "maybe"}, {"more": 1},
                  {"topics": ["law", "food", "arts", "health"]}, {"helpfulness": 2.5}):  # fmt: skip
        assert not judge.is_valid(whole | fault), fault
    assert not judge.is_valid({name: value for name, value in whole.items() if name != "claim"})


def test_every_question_has_its_columns_in_the_model(categories):
    assert sum(len(head.labels) for head in heads(categories)) == 3 + 3 + 15 + 19 + 1 + (4 + 3 + 3 + 4) + 1


@pytest.fixture
def recipe_part(tmp_path):
    """Reads `labels:` of a recipe whose file of categories has one topic more."""

    def read(**values):
        own = yaml.safe_load(CATEGORIES.read_text())
        own["topics"]["pottery"] = {"en": "pottery", "km": "ស្មូនឆ្នាំង"}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(own, allow_unicode=True))
        return validated(Labels, {"categories": "own.yaml", **values}, tmp_path / "recipe.yaml", "labels.")

    return read


def test_a_recipe_brings_categories_of_its_own(recipe_part):
    assert "pottery" in recipe_part(weights={"topics": {"pottery": 2}}).categories.topics


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"weights": {"topics": {"potery": 2}}}, "there is no topic 'potery'; there are agriculture, arts"),
        ({"categories": "gone.yaml"}, "gone.yaml: no such file; name an existing one"),
        ({"documents": 0}, "documents: Input should be greater than 0"),
        ({"keep": {"god_quality": True}}, "keep.god_quality: there is no such key"),
    ],
)
def test_a_mistake_is_told_with_what_was_given_and_expected(recipe_part, values, told):
    with pytest.raises(RecipeError, match=re.escape(told)):
        recipe_part(**values)
