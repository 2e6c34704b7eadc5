"""What is asked of a model. What does not belong here: how (`clients.py`)."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from khmer_client.answers import Answer, Correction, Dialogue, Explanation, Fluency, Level, Vocabulary

A = TypeVar("A", bound=Answer)
Language = Literal["km", "en"]
NAMES = {"km": "Khmer", "en": "English"}


@dataclass(frozen=True)
class Task(Generic[A]):
    """A question, the text that it is about, and the form of its answer."""

    question: str
    text: str
    form: type[A]


def fluency(text: str, language: Language) -> Task[Fluency]:
    """How fluent a text is; `language` is that of the problems and the summary."""
    question = f"Judge how fluent the text is. Write the problems and the summary in {NAMES[language]}."
    return Task(question, text, Fluency)


def vocabulary(text: str, language: Language) -> Task[Vocabulary]:
    """The words of a text; `language` is that of the meanings."""
    question = f"List the words of the text in their order, each once, and explain each in {NAMES[language]}."
    return Task(question, text, Vocabulary)


def grammar(text: str, language: Language) -> Task[Correction]:
    """A text without its mistakes; `language` is that of the reasons."""
    question = f"Correct the grammar and the spelling of the text. Write the reasons in {NAMES[language]}."
    return Task(question, text, Correction)


def dialogue(topic: str, language: Language, level: Level, lines: int) -> Task[Dialogue]:
    """A conversation about a topic; `language` is that in which it is."""
    question = f"Write a dialogue of {lines} lines in {NAMES[language]} about the topic, for learners of level {level}."
    return Task(question, topic, Dialogue)


def error(text: str, language: Language) -> Task[Explanation]:
    """Why a text is wrong; `language` is that of the explanation."""
    question = f"Explain the most important mistake of the text to a learner. Explain it in {NAMES[language]}."
    return Task(question, text, Explanation)
