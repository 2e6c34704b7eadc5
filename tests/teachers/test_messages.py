"""Rows go into one request and come out of its answer, whatever the answer is."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.teachers.messages import Wording, rendered
from khmer_assets.teachers.settings import Template

LABEL = {"type": "object", "properties": {"label": {"enum": ["ល្អ", "អាក្រក់"]}}, "required": ["label"]}
TEMPLATE = Template(text="ចូរវាយតម្លៃ៖ {text}", answer_schema=LABEL)
WORDING = Wording(TEMPLATE)
GOOD = {"label": "ល្អ"}


@settings(max_examples=40)
@given(st.text())
def test_a_value_is_put_in_as_it_is_also_with_braces(text):
    assert rendered(TEMPLATE, {"text": text}) == f"ចូរវាយតម្លៃ៖ {text}"


@settings(max_examples=40)
@given(st.lists(st.text(), min_size=2, max_size=20))
def test_rows_of_a_batch_stay_apart_whatever_they_say(texts):
    asked = WORDING.messages(texts)[-1]["content"]
    assert list(json.loads(asked).values()) == texts


@settings(max_examples=40)
@given(st.text(), st.integers(1, 12))
def test_any_text_is_read_without_an_error(content, rows):
    assert len(WORDING.taken_apart(content, rows)) == rows


@settings(max_examples=40)
@given(st.integers(2, 9).flatmap(lambda rows: st.tuples(st.just(rows), st.integers(0, 300))))
def test_of_a_cut_batch_the_whole_rows_are_read(case):
    rows, length = case
    whole = json.dumps({str(n): GOOD for n in range(1, rows + 1)}, ensure_ascii=False)
    found = WORDING.taken_apart(whole[:length], rows)
    complete = whole[:length].count("}")
    assert found[:complete] == [GOOD] * min(complete, rows)
    assert all(not isinstance(row, dict) for row in found[complete:])


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        ('{"1": {"label": "ល្អ"}, "1": {"label": "អាក្រក់"}, "2": {"label": "ល្អ"}}', ["missing", None]),
        ('{"2": {"label": "ល្អ"}}', ["missing", None]),
        ('{"1": {"label": "\\ud800"}, "2": {"label": "ល្អ"}}', ["no_json", None]),
        ('{"1": "ល្អ", "2": {"label": "ល្អ"}, "3": {}}', ["out_of_schema", None]),
        ('[{"label": "ល្អ"}, {"label": "ល្អ"}]', ["missing", "missing"]),
        ("", ["missing", "missing"]),
    ],
)
def test_a_fault_is_of_its_own_row(content, faults):
    found = WORDING.taken_apart(content, 2)
    assert [None if isinstance(row, dict) else row[0] for row in found] == faults


def test_the_sent_schema_is_closed_in_all_depths():
    inner = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    schema = {"type": "object", "properties": {"list": {"type": "array", "items": inner}}, "required": ["list"]}
    sent = Wording(Template(text="{text}", answer_schema=schema)).schema(3)
    assert sent["required"] == ["1", "2", "3"]
    answer = sent["$defs"]["answer"]
    assert answer["additionalProperties"] is False
    assert answer["properties"]["list"]["items"]["additionalProperties"] is False


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("begin", ["", "{", "```json\n", "<think>", '{"1": {"label": "ល្អ"}', '{"1"'])
def test_endless_spaces_are_read_at_once(begin, rows):
    assert len(WORDING.taken_apart(begin + " \n" * 400_000, rows)) == rows


def test_a_number_that_is_none_is_no_json():
    assert WORDING.taken_apart('{"label": 1e999}', 1)[0][0] == "no_json"
