"""What comes back of each question. A field's description is part of what the model is asked."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Level = Literal["A1", "A2", "B1", "B2", "C1", "C2"]


class Answer(BaseModel):
    """Nothing but the fields that were asked for, as servers with JSON schemas want it."""

    model_config = ConfigDict(extra="forbid")


class Fluency(Answer):
    """How a text reads to a native speaker."""

    score: Annotated[int, Field(description="1 (not understandable) to 5 (as a native speaker writes)", ge=1, le=5)]
    problems: Annotated[list[str], Field(description="what does not read well, one a place; empty if nothing")]
    summary: Annotated[str, Field(description="one sentence")]


class Word(Answer):
    """A word of a text."""

    word: Annotated[str, Field(description="as it stands in the text")]
    level: Annotated[Level, Field(description="the level of the CEFR at which learners know it")]
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

    corrected: Annotated[str, Field(description="the whole text, with nothing but mistakes changed")]
    changes: Annotated[list[Change], Field(description="each change; empty if there was no mistake")]


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

    rule: Annotated[str, Field(description="the rule that was broken")]
    explanation: Annotated[str, Field(description="for a learner, in two or three sentences")]
    examples: Annotated[list[str], Field(description="correct sentences that show the rule")]
