"""What comes back of each question. A field's description is part of what the model is asked."""

import json
from types import GenericAlias
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Level = Literal["A1", "A2", "B1", "B2", "C1", "C2"]


class Answer(BaseModel):
    """Nothing but the fields that were asked for, as servers with JSON schemas want it."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def pattern(cls) -> str:
        """The form in a line, for models: a schema takes ten times as many tokens and says no more to them."""
        return json.dumps(cls._pattern(), ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def _pattern(cls) -> dict[str, Any]:
        return {name: _told(field) for name, field in cls.model_fields.items()}


def _told(field: FieldInfo) -> Any:
    kind = field.annotation
    if isinstance(kind, GenericAlias):  # a list
        (item,) = get_args(kind)
        return [item._pattern() if issubclass(item, Answer) else field.description or "..."]
    return field.description or "..."


class Fluency(Answer):
    """How a text reads to a native speaker."""

    score: Annotated[int, Field(description="1 (not understandable) to 5 (fluent)", ge=1, le=5)]
    problems: Annotated[list[str], Field(description="what does not read well")]
    summary: Annotated[str, Field(description="one sentence")]


class Word(Answer):
    """A word of a text."""

    word: Annotated[str, Field(description="as in the text")]
    level: Annotated[Level, Field(description="A1 to C2")]  # of the CEFR: the one at which learners know it
    meaning: str


class Vocabulary(Answer):
    """The words of a text."""

    words: list[Word]


class Change(Answer):
    """One correction."""

    before: str
    after: str
    reason: str


class Correction(Answer):
    """A text without its mistakes."""

    corrected: Annotated[str, Field(description="the whole text")]
    changes: Annotated[list[Change], Field(description="each change, in the order of the text")]


class Line(Answer):
    """What somebody says."""

    speaker: str
    text: str


class Dialogue(Answer):
    """A conversation."""

    title: str
    lines: list[Line]


class Explanation(Answer):
    """Why something is wrong."""

    rule: Annotated[str, Field(description="the broken rule")]
    explanation: Annotated[str, Field(description="for a learner")]
    examples: Annotated[list[str], Field(description="correct sentences")]
