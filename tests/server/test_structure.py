"""How large and deep schemas are, and which keywords stand in them, whatever their writers have named."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.server.refusals import Refused
from khmer_assets.server.structure import SchemaLimits, depth_of, keywords, require_within, written_out

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)


@given(JSON)
def test_a_list_around_anything_is_one_deeper(value):
    assert depth_of([value]) == depth_of(value) + 1
    assert depth_of({"ក": value, "ខ": 1}) == depth_of(value) + 1


def test_names_and_data_of_a_writer_are_no_keywords():
    schema = {
        "properties": {"pattern": {"type": "string", "enum": [{"not": 1}]}, "not": {"$ref": "#/$defs/if"}},
        "$defs": {"if": {"anyOf": [{"const": {"then": 1}}, {"items": {"maxLength": 3}}]}},
        "required": ["pattern"],
    }
    found = set(keywords(schema))
    assert found == {"properties", "type", "enum", "$ref", "$defs", "anyOf", "const", "items", "maxLength", "required"}
    assert "pattern" in set(keywords({"properties": {"a": {"items": [{"pattern": "^a$"}]}}}))


@pytest.mark.parametrize("doublings", [3, 10, 30, 3000])
def test_references_count_as_often_as_they_are_written_out(doublings):
    twice = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(doublings)}
    schema = {"$defs": {**twice, f"d{doublings}": {"type": "integer"}}, "$ref": "#/$defs/d0"}
    assert written_out(schema) > 2**doublings or written_out(schema) == math.inf
    assert written_out(schema) < 4 * 2**doublings or doublings > 1000


def test_references_that_lead_back_or_nowhere_end():
    tree = {"type": "object", "properties": {"a~b/c": {"items": {"$ref": "#"}}, "d": {"$ref": "#/properties/a~0b~1c"}}}
    assert written_out(tree) == 12  # once more than it is long
    assert written_out({"$ref": "#/$defs/none"}) == written_out({"$ref": "http://localhost/x"}) == 1


def test_the_schemas_of_a_request_are_bounded_together():
    limits = SchemaLimits(schema_bytes=60, schema_depth=3)
    require_within([{"type": "string"}, {"type": "string"}], limits)
    with pytest.raises(Refused, match="have 70 bytes; this key may send 60"):
        require_within([{"description": "ក" * 5}, {"type": "object", "properties": {}}], limits)
    with pytest.raises(Refused, match="4 objects and lists within each other; this key may send 3"):
        require_within([{"items": {"items": {"items": {}}}}], limits)
