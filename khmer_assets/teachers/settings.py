"""What is set of a teacher, of what is asked, and of what it may cost."""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, SchemaError
from pydantic import AfterValidator, Field

from khmer_assets.foundation.settings import Name, PlainValues, PositiveFloat, PositiveInt, Settings, digest_of

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def _served_by_http(address: str) -> str:
    try:
        parts = urlsplit(address)
        port = parts.port  # raises for one that is no number
    except ValueError as error:
        raise ValueError(f"expected an address as http://127.0.0.1:8000/v1: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("expected an address of http or https, as http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("expected an address alone; a key goes into the environment variable that key_variable names")
    return address.rstrip("/")


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError("expected the name of an environment variable, as TEACHER_KEY; never the key itself")
    return name


def _row_schema(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("type") != "object" or not schema.get("properties"):
        raise ValueError("expected a JSON schema of an object with properties")
    if "$ref" in str(schema) or "$dynamicRef" in str(schema):
        raise ValueError("expected a JSON schema without references")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"expected a JSON schema: {error.message:.200}") from None
    return schema


class Teacher(Settings):
    """A model behind a server that speaks OpenAI's protocol: a hosted one, or this project's own.

    `address` ends in /v1 with most servers; `key_variable` names the environment variable that holds the key, if one is
    needed. Limits hold for all processes of this machine together. Prices are money a million tokens; without them the
    cost is not known. `share`: of the rows, in proportion to the other teachers'. `context_length`: tokens of prompt
    and answer together, where a longer row shall not even be sent.
    """

    name: Name
    address: Annotated[str, AfterValidator(_served_by_http)]
    model: Annotated[str, Field(min_length=1)]
    key_variable: Annotated[str, AfterValidator(_variable)] | None = None
    requests_a_minute: PositiveInt | None = None
    prompt_tokens_a_minute: PositiveInt | None = None
    answer_tokens_a_minute: PositiveInt | None = None
    at_a_time: PositiveInt = 16
    prompt_price: Annotated[float, Field(ge=0)] | None = None
    answer_price: Annotated[float, Field(ge=0)] | None = None
    share: PositiveFloat = 1
    context_length: PositiveInt | None = None

    @property
    def priced(self) -> bool:
        """Whether its cost is known."""
        return self.prompt_price is not None and self.answer_price is not None

    def cost(self, prompt_tokens: float, answer_tokens: float) -> float | None:
        """Money; None where a price is left out."""
        if self.prompt_price is None or self.answer_price is None:
            return None
        return (prompt_tokens * self.prompt_price + answer_tokens * self.answer_price) / 1_000_000


def _names_are_their_own(teachers: list[Teacher]) -> list[Teacher]:
    names = [teacher.name for teacher in teachers]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two teachers are named {twice[0]!r}; give each its own name")
    return teachers


TeacherList = Annotated[list[Teacher], AfterValidator(_names_are_their_own)]


class Budget(Settings):
    """The most that one materialization may take, in requests, tokens (of prompts and answers) and money."""

    requests: PositiveInt | None = None
    tokens: PositiveInt | None = None
    money: PositiveFloat | None = None


def _asks_of_the_row(text: str) -> str:
    if not PLACEHOLDER.search(text):
        raise ValueError("expected a text with a {placeholder} for what differs from row to row")
    return text


class Template(Settings):
    """What is asked of each row: `text` with the row's values for its {placeholders}, and `system` before it.

    `answer_schema` is the JSON schema of one row's answer, an object. `rows_at_once` rows are one request; put then
    what is the same for all rows into `system`. `max_answer_tokens` are those of a row.
    """

    text: Annotated[str, AfterValidator(_asks_of_the_row)]
    answer_schema: Annotated[PlainValues, AfterValidator(_row_schema)]
    system: str | None = None
    rows_at_once: Annotated[int, Field(gt=0, le=100)] = 1
    max_answer_tokens: PositiveInt = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0

    @property
    def placeholders(self) -> tuple[str, ...]:
        """The names in braces, each once."""
        return tuple(dict.fromkeys(PLACEHOLDER.findall(self.text)))

    @property
    def version(self) -> str:
        """A digest of all that decides an answer; how many rows share a request does not."""
        return digest_of(self.model_dump(exclude={"rows_at_once"}))[:12]
