"""The stronger model that the recipe names, behind another server: asked once, whole or streamed.

What belongs here: that request, and its answer piece by piece. What does not: when it is asked (`routing.py`). Only
what it needs is sent: no key of a user, no name, and nothing that means tokens of the served model.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from khmer_assets.server.events import BETWEEN, END_MARK
from khmer_assets.server.requests import Body, Chat
from khmer_assets.server.state import StrongerModel

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 5.0
SILENT_SECONDS = 60.0  # between two pieces of an answer, and before the first
MOST_BYTES = 16 * 1024 * 1024  # of an answer
SENT = {
    *("messages", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "stream", "n"),
    *("presence_penalty", "frequency_penalty", "tools", "tool_choice", "parallel_tool_calls", "response_format"),
    *("logprobs", "top_logprobs"),
}


class StrongerFailure(Exception):
    """The stronger model gives no answer; the message says why, without what was asked."""


class Function(BaseModel):
    """Of a call, or a piece of one."""

    name: str | None = None
    arguments: str | None = None


class Call(BaseModel):
    """Of a tool."""

    index: int = 0
    id: str | None = None
    type: Literal["function"] | None = None
    function: Function = Function()


class Said(BaseModel):
    """A message, or a piece of one."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[Call] | None = None


class Choice(BaseModel):
    """One of the answers."""

    index: int = 0
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class Usage(BaseModel):
    """In tokens."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class Message(BaseModel):
    """An answer or an event, as OpenAI has it. What is not here is dropped, for nobody knows what reads it."""

    id: str
    object: str = ""
    created: int = 0
    model: str = ""
    choices: list[Choice]
    usage: Usage | None = None

    @classmethod
    def checked(cls, content: bytes) -> bytes:
        """The same, with nothing that users and audit records do not expect. Raises `StrongerFailure`."""
        try:
            return cls.model_validate_json(content).model_dump_json(exclude_unset=True).encode()
        except ValidationError:
            raise StrongerFailure("it answered with something that is no answer of a chat") from None


class Reply:
    """Its answer, read as an engine's (`connections.py`)."""

    content_type = "application/json"

    def __init__(self, response: "httpx.Response", streamed: bool):
        self.status = response.status_code
        self._response = response
        self._streamed = streamed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The answer in pieces, whole events of a stream, as they come. Raises `StrongerFailure`."""
        size, pending = 0, b""
        async for piece in self._response.aiter_bytes():
            size += len(piece)
            if size > MOST_BYTES:
                raise StrongerFailure(f"its answer has more than {MOST_BYTES:,} bytes")
            pending += piece.replace(b"\r", b"")  # which JSON has in no text
            if self._streamed:
                events, mark, rest = pending.rpartition(BETWEEN)
                if mark:
                    pending = rest
                    if told := b"".join(map(self._event, events.split(BETWEEN))):
                        yield told
        if not self._streamed:
            yield Message.checked(pending)

    def _event(self, event: bytes) -> bytes:
        event = event.strip()
        if event == END_MARK or not event.startswith(b"data:"):  # others are comments, which keep connections open
            return event + BETWEEN if event == END_MARK else b""
        return b"data: " + Message.checked(event.removeprefix(b"data:")) + BETWEEN

    async def forward(self, take: Callable[[bytes], bool]) -> None:
        """Nothing: each piece comes from the iteration."""

    async def rest(self) -> None:
        """Nothing: the client closes a connection whose answer was not read to its end."""


class Stronger:
    """The way to it; its connections are kept open."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def asked(self, model: StrongerModel, body: Body) -> AsyncIterator[Reply]:
        """Ask it. Raises `StrongerFailure` where it does not answer with status 200, or breaks off."""
        import httpx  # a gateway that never asks starts sooner

        assert isinstance(body, Chat), "only chats are routed"
        headers = {"Content-Type": "application/json"}
        if model.key_variable:
            if not (key := os.environ.get(model.key_variable)):
                told = f"the gateway's environment has no {model.key_variable}; set it, and start the server again"
                raise StrongerFailure(told)
            headers["Authorization"] = f"Bearer {key}"
        fields = body.model_dump(exclude_none=True, include=SENT) | {"model": model.model}
        if body.streams():
            fields["stream_options"] = {"include_usage": True}
        timeout = httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
        self._client = self._client or httpx.AsyncClient(timeout=timeout, follow_redirects=False)
        address = f"{model.address}/chat/completions"
        try:
            async with self._client.stream("POST", address, content=to_json(fields), headers=headers) as response:
                if response.status_code != 200:
                    raise StrongerFailure(f"it answered with status {response.status_code}")
                yield Reply(response, body.streams())
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise StrongerFailure(f"it cannot be asked, or broke off ({type(error).__name__})") from None
