"""A mistake in the settings of teachers is told in one line, and a key is in none of them."""

import pytest

from khmer_assets.foundation.settings import RecipeError, Settings, validated
from khmer_assets.teachers.settings import Teacher, TeacherList, Template
from tests.teachers.hosts import KEY

TEACHER = {"name": "sage", "address": "https://api.example.org/v1/", "model": "sage-1"}
SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}}


class Part(Settings):
    teachers: TeacherList = []


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"address": "ftp://example.org"}, "of http or https"),
        ({"address": "file:///etc/passwd"}, "of http or https"),
        ({"address": "api.example.org/v1"}, "of http or https"),
        ({"address": "http://example.org:x/v1"}, "expected an address as"),
        ({"address": f"https://user:{KEY}@example.org/v1"}, "an address alone"),
        ({"address": f"https://example.org/v1?key={KEY}"}, "an address alone"),
        ({"key_variable": KEY}, "the name of an environment variable"),
        ({"key": KEY}, "there is no such key"),
        ({"api_key": KEY, "model": None}, "valid string"),
        ({"prompt_price": -1}, "greater than or equal to 0"),
        ({"share": 0}, "greater than 0"),
    ],
)
def test_a_mistake_is_one_line_a_mistake_without_the_key(tmp_path, values, says):
    with pytest.raises(RecipeError, match=says) as error:
        validated(Part, {"teachers": [{**TEACHER, **values}]}, tmp_path / "recipe.yaml")
    assert "teachers.0" in str(error.value)
    assert KEY not in str(error.value)


def test_a_teacher_of_which_something_is_missing_does_not_show_the_rest(tmp_path):
    with pytest.raises(RecipeError, match=r"teachers\.0\.model: is missing") as error:
        validated(
            Part, {"teachers": [{"key": KEY, "name": "sage", "address": "http://a/v1"}]}, tmp_path / "recipe.yaml"
        )
    assert KEY not in str(error.value)


def test_two_teachers_of_one_name_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="two teachers are named 'sage'"):
        validated(Part, {"teachers": [TEACHER, TEACHER]}, tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"text": "Label this document."}, "expected a text with a {placeholder}"),
        ({"answer_schema": {"type": "array"}}, "of an object with properties"),
        ({"answer_schema": {**SCHEMA, "required": "label"}}, "expected a JSON schema"),
        ({"answer_schema": {**SCHEMA, "properties": {"a": {"$ref": "http://example.org"}}}}, "without references"),
    ],
)
def test_a_template_that_cannot_be_asked_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        Template(**{"text": "{text}", "answer_schema": SCHEMA, **values})


def test_the_version_changes_with_what_is_asked_alone():
    template = Template(text="{text}", answer_schema=SCHEMA)
    assert template.version == template.model_copy(update={"rows_at_once": 10}).version
    for change in ({"text": "{text}!"}, {"system": "ចូរវាយតម្លៃ"}, {"max_answer_tokens": 9}, {"temperature": 0.5}):
        assert template.model_copy(update=change).version != template.version


def test_a_cost_is_known_with_both_prices_alone():
    assert Teacher(**TEACHER, prompt_price=1, answer_price=2).cost(1_000_000, 500_000) == 2
    assert Teacher(**TEACHER, prompt_price=1).cost(1, 1) is None
