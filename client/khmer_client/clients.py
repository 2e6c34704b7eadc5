"""The clients, synchronous and asynchronous: one way of asking, and who waits for the answers.

An answer that does not have its form is asked for once more, with what was wrong with it. A server that refuses JSON
schemas is asked without, and not with one again.
"""

from collections.abc import Generator
from typing import Any, Generic, TypeVar

import openai
from pydantic import ValidationError

from khmer_client import tasks
from khmer_client.answers import Answer, Correction, Dialogue, Explanation, Fluency, Level, Vocabulary
from khmer_client.tasks import Language, Task

A = TypeVar("A", bound=Answer)
C = TypeVar("C", openai.OpenAI, openai.AsyncOpenAI)
Request = dict[str, Any]
REFUSALS = (openai.BadRequestError, openai.UnprocessableEntityError)
Told = str | openai.APIStatusError  # what a server has answered, or that it has refused


class AnswerError(Exception):
    """A server that did not answer in the form that was asked for, twice; `text` is what it said last."""

    def __init__(self, form: type[Answer], text: str, why: str):
        super().__init__(f"expected {form.__name__} as JSON, got {text[:200]!r}: {why}")
        self.text = text


class Asking(Generic[C]):
    """What both clients share. `client` is OpenAI's; `max_tokens` is the longest answer, by default what the model's
    context has room for."""

    def __init__(self, client: C, model: str = "khmer", max_tokens: int | None = None):
        self.client: C = client
        self.model = model
        self.max_tokens = max_tokens
        self.takes_schemas = True  # until the server refuses one

    def requests(self, task: Task[A]) -> Generator[Request, Told, A]:
        """The requests of a task, each of which wants to be told its answer; returns what they came to.

        Raises `AnswerError`, and what the server has refused without a schema too.
        """
        schema = task.form.model_json_schema()
        messages: list[dict[str, str]] = task.messages
        why = text = ""
        for _ in range(2):
            told = yield self._request(messages, task.form.__name__, schema if self.takes_schemas else None)
            if isinstance(told, Exception) and self.takes_schemas:
                told = yield self._request(messages, task.form.__name__, None)
                self.takes_schemas = isinstance(told, Exception)  # else it was not the schema
            if isinstance(told, Exception) and text:  # a short context has no room for a second try
                raise AnswerError(task.form, text, f"{why}; asked once more, the server refused: {told}") from told
            if isinstance(told, Exception):
                raise told
            text = told
            try:
                return task.form.model_validate_json(text[text.find("{") : text.rfind("}") + 1])
            except ValidationError as error:
                why = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
            again = f"That is not the JSON object that was asked for: {why}. Answer with the object alone."
            messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": again}]
        raise AnswerError(task.form, text, why)

    def _request(self, messages: list[dict[str, str]], name: str, schema: dict[str, Any] | None) -> Request:
        request: Request = {"model": self.model, "messages": messages, "temperature": 0}
        if self.max_tokens is not None:
            request["max_tokens"] = self.max_tokens
        if schema is not None:
            named = {"name": name, "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        return request


class KhmerClient(Asking[openai.OpenAI]):
    """Waits for its answers. Raises `AnswerError`, and OpenAI's exceptions as its client does."""

    def analyze_fluency(self, text: str, language: Language = "km") -> Fluency:
        """How a text reads to a native speaker."""
        return self._ask(tasks.fluency(text, language))

    def classify_vocabulary(self, text: str, language: Language = "km") -> Vocabulary:
        """The words of a text, their levels and meanings."""
        return self._ask(tasks.vocabulary(text, language))

    def correct_grammar(self, text: str, language: Language = "km") -> Correction:
        """A text without its mistakes, and each change with its reason."""
        return self._ask(tasks.grammar(text, language))

    def generate_dialogue(self, topic: str, language: Language = "km", level: Level = "A2", lines: int = 4) -> Dialogue:
        """A conversation about a topic."""
        return self._ask(tasks.dialogue(topic, language, level, lines))

    def explain_error(self, text: str, language: Language = "km") -> Explanation:
        """Why a text is wrong, for a learner."""
        return self._ask(tasks.error(text, language))

    def _ask(self, task: Task[A]) -> A:
        requests = self.requests(task)
        try:
            request = next(requests)
            while True:
                request = requests.send(self._told(request))
        except StopIteration as end:
            return end.value

    def _told(self, request: Request) -> Told:
        try:
            return self.client.chat.completions.create(**request).choices[0].message.content or ""
        except REFUSALS as refusal:
            return refusal


class AsyncKhmerClient(Asking[openai.AsyncOpenAI]):
    """As `KhmerClient`, awaited."""

    async def analyze_fluency(self, text: str, language: Language = "km") -> Fluency:
        """How a text reads to a native speaker."""
        return await self._ask(tasks.fluency(text, language))

    async def classify_vocabulary(self, text: str, language: Language = "km") -> Vocabulary:
        """The words of a text, their levels and meanings."""
        return await self._ask(tasks.vocabulary(text, language))

    async def correct_grammar(self, text: str, language: Language = "km") -> Correction:
        """A text without its mistakes, and each change with its reason."""
        return await self._ask(tasks.grammar(text, language))

    async def generate_dialogue(
        self, topic: str, language: Language = "km", level: Level = "A2", lines: int = 4
    ) -> Dialogue:
        """A conversation about a topic."""
        return await self._ask(tasks.dialogue(topic, language, level, lines))

    async def explain_error(self, text: str, language: Language = "km") -> Explanation:
        """Why a text is wrong, for a learner."""
        return await self._ask(tasks.error(text, language))

    async def _ask(self, task: Task[A]) -> A:
        requests = self.requests(task)
        try:
            request = next(requests)
            while True:
                request = requests.send(await self._told(request))
        except StopIteration as end:
            return end.value

    async def _told(self, request: Request) -> Told:
        try:
            return (await self.client.chat.completions.create(**request)).choices[0].message.content or ""
        except REFUSALS as refusal:
            return refusal
