"""What is asked of a model. What does not belong here: how (`clients.py`)."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from khmer_client.answers import Answer, Correction, Dialogue, Explanation, Fluency, Level, Vocabulary

A = TypeVar("A", bound=Answer)
Language = Literal["km", "en"]
NAMES = {"km": "Khmer", "en": "English"}
WORDS = 5  # that are explained; of a long text all would be no answer


@dataclass(frozen=True)
class Task(Generic[A]):
    """A question, the text that it is about, and the form of its answer."""

    question: str
    text: str
    form: type[A]

    @property
    def messages(self) -> list[dict[str, str]]:
        """What a model is asked. The sample's adapter `tutor` is trained on exactly these words: its chats change with
        them (khmer_assets/instructions/embedded_tutor.yaml; a test holds both equal)."""
        system = f"{self.question} Answer with JSON alone: {self.form.pattern()}"
        return [{"role": "system", "content": system}, {"role": "user", "content": self.text}]


def fluency(text: str, language: Language) -> Task[Fluency]:
    """How fluent a text is; `language` is that of the problems and the summary."""
    question = f"Judge how fluent the text is, in {NAMES[language]}."
    return Task(question, text, Fluency)


def vocabulary(text: str, language: Language) -> Task[Vocabulary]:
    """The words of a text that a learner may not know; `language` is that of the meanings."""
    question = f"Explain the words of the text that a learner may not know, {WORDS} at most, in {NAMES[language]}."
    return Task(question, text, Vocabulary)


def grammar(text: str, language: Language) -> Task[Correction]:
    """A text without its mistakes; `language` is that of the reasons."""
    question = f"Correct the grammar and the spelling of the text. Change only mistakes. Reasons in {NAMES[language]}."
    return Task(question, text, Correction)


def dialogue(topic: str, language: Language, level: Level, lines: int) -> Task[Dialogue]:
    """A conversation about a topic; `language` is that in which it is."""
    question = f"Write a dialogue of {lines} lines in {NAMES[language]} about the topic, for learners of level {level}."
    return Task(question, topic, Dialogue)


def error(text: str, language: Language) -> Task[Explanation]:
    """Why a text is wrong; `language` is that of the explanation."""
    question = f"Explain the most important mistake of the text in {NAMES[language]}."
    return Task(question, text, Explanation)
