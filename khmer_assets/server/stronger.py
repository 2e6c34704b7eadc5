"""The stronger model that the recipe names, behind another server: asked once, whole or streamed.

What belongs here: that request, and its answer piece by piece. What does not: when it is asked (`routing.py`). Only
what it needs is sent: no key of a user, no name, and nothing that means tokens of the served model.
"""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from pydantic_core import to_json

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


class Reply:
    """Its answer, read as an engine's (`connections.py`)."""

    def __init__(self, response: "httpx.Response"):
        self.status = response.status_code
        self.content_type = "application/json"
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The answer in pieces as they come, lines ended as an engine ends them. Raises `StrongerFailure`."""
        size = 0
        async for piece in self._response.aiter_bytes():
            size += len(piece)
            if size > MOST_BYTES:
                raise StrongerFailure(f"its answer has more than {MOST_BYTES:,} bytes")
            yield piece.replace(b"\r", b"")  # which JSON has in no text

    async def forward(self, take: Callable[[bytes], bool]) -> None:
        """Nothing: each piece comes from the iteration."""


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
                yield Reply(response)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise StrongerFailure(f"it cannot be asked, or broke off ({type(error).__name__})") from None
