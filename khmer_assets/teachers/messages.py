"""What is said to a teacher, and what its answer says of each row.

The words of a task do not belong here (they are the stages'); how rows are put into one request, and how an answer is
taken apart again, does. An answer is trusted in nothing: it may be cut, hold half of the rows, or any text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry

from khmer_assets.foundation.settings import digest_of
from khmer_assets.teachers.settings import PLACEHOLDER, Template

Message = dict[str, str]
Fault = tuple[str, float | None, str]  # rule, measure, reason

REASON = 300  # characters of a reason
THOUGHT = ("<think>", "</think>")  # which some servers leave before the answer
FENCE = "```"
BETWEEN = re.compile(r'\s*+,?\s*+"(\d{1,3})"\s*+:\s*+')  # rows of a batch; ++ for answers of spaces without end


def rendered(template: Template, values: Mapping[str, str]) -> str:
    """The template's text with the row's values. Raises `KeyError` for a placeholder without a value."""
    return PLACEHOLDER.sub(lambda found: values[found[1]], template.text)


def digest_of_row(model: str, version: str, text: str) -> str:
    """What an answer is known by: the model, the template's version and the row's own message."""
    return digest_of([model, version, text])[:32]


class Wording:
    """A template, made ready to be asked many times."""

    def __init__(self, template: Template):
        self._template = template
        self._schema = json.dumps(template.answer_schema, ensure_ascii=False)
        self._closed = _closed(template.answer_schema)
        self._validator = Draft202012Validator(template.answer_schema, registry=Registry())
        self._systems: dict[int, str] = {}

    def messages(self, texts: Sequence[str]) -> list[Message]:
        """The messages that ask for the rows with these texts. They tell the schema too, for servers that take none."""
        asked = texts[0]
        if len(texts) > 1:
            asked = json.dumps({str(number): text for number, text in enumerate(texts, 1)}, ensure_ascii=False)
        return [{"role": "system", "content": self.system(len(texts))}, {"role": "user", "content": asked}]

    def system(self, rows: int) -> str:
        """What is said before so many rows."""
        if rows not in self._systems:
            rule = f"Answer with one JSON object of this schema and nothing else: {self._schema}"
            if rows > 1:
                rule = (
                    f"You get {rows} items as a JSON object, by their numbers. Judge each by itself. Answer with one "
                    f'JSON object that has each number ("1" to "{rows}") as a key, and as its value an object of this '
                    f"schema, and nothing else: {self._schema}"
                )
            self._systems[rows] = f"{self._template.system}\n\n{rule}" if self._template.system else rule
        return self._systems[rows]

    def schema(self, rows: int) -> dict[str, Any]:
        """The schema of the answer for so many rows, as a server with structured output takes it."""
        if rows == 1:
            return self._closed
        numbers = [str(number) for number in range(1, rows + 1)]
        properties = {number: {"$ref": "#/$defs/answer"} for number in numbers}
        batch = {"type": "object", "properties": properties, "required": numbers, "additionalProperties": False}
        return {**batch, "$defs": {"answer": self._closed}}

    def taken_apart(self, content: str, rows: int) -> list[dict[str, Any] | Fault]:
        """What the answer says of each row, in their order: its value, or why there is none."""
        text = _bare(content)
        if rows == 1:
            try:
                return [self._checked(_parsed(text))]
            except ValueError as error:
                return [("no_json", float(len(text)), f"{error}: {text!r:.160}"[:REASON])]
        found = _pairs(text)
        return [
            self._checked(found[str(number)])
            if str(number) in found
            else ("missing", float(number), f"the answer has no row {number} of {rows}")
            for number in range(1, rows + 1)
        ]

    def _checked(self, value: Any) -> dict[str, Any] | Fault:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return "no_json", None, "a text in the answer has half a character (a lone surrogate)"
        if (error := best_match(self._validator.iter_errors(value))) is not None:
            where = ".".join(map(str, error.absolute_path)) or "answer"
            return "out_of_schema", None, f"{where}: {error.message}"[:REASON]
        return dict(value)


def _closed(schema: Any) -> Any:
    """The schema with its objects closed, which OpenAI's strict mode wants."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: value if key in ("enum", "const") else _closed(value) for key, value in schema.items()}
    return inner if schema.get("type") != "object" else {"additionalProperties": False, **inner}


def _bare(content: str) -> str:
    """The answer without thoughts before it, and without a fence around it."""
    text = content.strip()
    if text.startswith(THOUGHT[0]) and (end := text.find(THOUGHT[1])) >= 0:
        text = text[end + len(THOUGHT[1]) :].strip()
    if text.startswith(FENCE) and "\n" in text:
        text = text[text.index("\n") :].removesuffix(FENCE).strip()
    return text


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.20} is too large for a number")
    return number


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in an object")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_once)


def _parsed(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None


def _pairs(text: str) -> dict[str, Any]:
    """The rows of a batch's answer, also where it was cut or spoiled further on; not those that stand there twice."""
    found: dict[str, Any] = {}
    twice: set[str] = set()
    place = text.find("{") + 1
    while place and (key := BETWEEN.match(text, place)):
        try:
            value, place = _DECODER.raw_decode(text, key.end())
        except (ValueError, RecursionError):
            break
        if key[1] in found:
            twice.add(key[1])
        found[key[1]] = value
    return {key: value for key, value in found.items() if key not in twice}
