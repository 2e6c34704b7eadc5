"""What an answer may have to look like: the tools that the model may call, and JSON, perhaps of a schema.

What belongs here: their shape in a request, how large a schema may be, and which keywords stand in it. What does not:
which of it an engine can do (`vllm.py`, `llama_cpp.py`), and what a template makes of tools (`tool_formats.py`).
"""

import json
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.server.refusals import Refused

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Described = Annotated[str, Field(max_length=16_384)]
# whose values are schemas by a name of the user's own, and whose value is data
NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
DATA = ("enum", "const", "default", "examples", "required")


def _jsonable(schema: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(schema, allow_nan=False).encode()
    except ValueError:
        raise ValueError("expected JSON: NaN, infinity and half surrogates are none") from None
    return schema


Schema = Annotated[dict[str, Any], AfterValidator(_jsonable)]


class SchemaLimits(Settings):
    """How large the schemas of one request may be, those of its tools and of its answer together.

    `schema_bytes`: of all as JSON. `schema_depth`: objects and lists within each other.
    """

    schema_bytes: PositiveInt = 32_768
    schema_depth: PositiveInt = 24


class Function(BaseModel):
    """What the model may call. Without `parameters` it takes none."""

    model_config = STRICT

    name: FunctionName
    description: Described | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """OpenAI's wrapping of a function; there are no other tools."""

    model_config = STRICT

    type: Literal["function"]
    function: Function


class FunctionChoice(BaseModel):
    """The name alone."""

    model_config = STRICT

    name: FunctionName


class ToolChoice(BaseModel):
    """The function that must be called."""

    model_config = STRICT

    type: Literal["function"]
    function: FunctionChoice


class Plain(BaseModel):
    """Text as the model writes it."""

    model_config = STRICT

    type: Literal["text"]


class JsonObject(BaseModel):
    """Any JSON object."""

    model_config = STRICT

    type: Literal["json_object"]


@with_config(STRICT)
class NamedSchema(TypedDict):
    """A schema and what it is called; no BaseModel, which has a method of the name `schema`."""

    name: FunctionName
    schema: Schema
    description: NotRequired[Described | None]
    strict: NotRequired[bool | None]


class JsonOfSchema(BaseModel):
    """JSON that a schema describes."""

    model_config = STRICT

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[Plain | JsonObject | JsonOfSchema, Field(discriminator="type")]


def require_within(schemas: list[dict[str, Any]], limits: SchemaLimits) -> None:
    """Raise `Refused` (400) for schemas that are larger or deeper than the limits."""
    size = sum(len(json.dumps(schema, ensure_ascii=False).encode()) for schema in schemas)
    if size > limits.schema_bytes:
        told = f"the schemas have {size:,} bytes; this key may send {limits.schema_bytes:,} a request"
        raise Refused(400, told, code="schema_too_large")
    depth = max(map(depth_of, schemas), default=0)
    if depth > limits.schema_depth:
        told = f"a schema has {depth} objects and lists within each other; this key may send {limits.schema_depth}"
        raise Refused(400, told, code="schema_too_deep")


def depth_of(value: Any) -> int:
    """How many objects and lists stand within each other.

    >>> depth_of({"type": "object", "properties": {}})
    2
    """
    deepest, left = 0, [(value, 1)]
    while left:
        one, depth = left.pop()
        if isinstance(one, dict | list):
            deepest = max(deepest, depth)
            left += [(inner, depth + 1) for inner in (one.values() if isinstance(one, dict) else one)]
    return deepest


def keywords(schema: Any) -> Iterator[str]:
    """The keywords of a schema and of those in it, without the names that its writer has chosen.

    >>> sorted(set(keywords({"properties": {"pattern": {"type": "string"}}, "enum": [{"not": 1}]})))
    ['enum', 'properties', 'type']
    """
    left = [schema]
    while left:
        one = left.pop()
        if isinstance(one, list):
            left += one
        elif isinstance(one, dict):
            for key, value in one.items():
                yield key
                if key in NAMED_SCHEMAS and isinstance(value, dict):
                    left += value.values()
                elif key not in DATA:
                    left.append(value)


def written_out(schema: dict[str, Any]) -> float:
    """How many schemas it holds when each `$ref` is written out; one that leads back to itself ends there.

    >>> written_out({"$defs": {"a": {"type": "string"}}, "items": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]})
    5
    """
    known: dict[str, int] = {}

    def size(one: Any) -> int:
        if isinstance(one, list):
            return sum(map(size, one))
        if not isinstance(one, dict):
            return 0
        told = 0
        for key, value in one.items():
            if key in NAMED_SCHEMAS and isinstance(value, dict):
                told += 0 if key in ("$defs", "definitions") else size(list(value.values()))
            elif key not in DATA:
                told += size(value)
        reference = one.get("$ref")
        if isinstance(reference, str):
            if reference not in known:
                known[reference] = 0
                known[reference] = size(_found(schema, reference))
            told += known[reference]
        return told + 1

    try:
        return size(schema)
    except RecursionError:
        return math.inf


def _found(schema: Any, reference: str) -> Any:
    """What a reference within the document names; None where there is no such thing."""
    for step in reference.removeprefix("#").split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        schema = schema.get(name) if isinstance(schema, dict) else None
    return schema
