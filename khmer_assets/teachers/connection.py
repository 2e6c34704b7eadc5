"""One request to a teacher's server, and what its answer means for the row, for the teacher and for the next try.

A server is trusted in nothing: it may stall, lie, break off, or send without end. No key is in any text from here.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from khmer_assets.teachers.limits import Size
from khmer_assets.teachers.settings import Teacher
from khmer_assets.teachers.transport import transport_to

USER_AGENT = "khmer-llm-factory/0.1"
FIRST_TOKEN_SECONDS = 120.0  # a request may wait so long for its turn at the server
TOKENS_A_SECOND = 10  # of the slowest answer that is waited for
MOST_ERROR_BYTES = 20_000
TOLD = 300  # characters of a server's error that are passed on
SHORTEST_SECRET = 8
QUOTA = ("insufficient_quota", "insufficient balance", "billing_hard_limit", "exceeded your current quota")
TOO_LONG = ("context_length_exceeded", "maximum context length", "exceed_context_size", "context size", "too long")
# What some servers do not take, by the words of their refusals, and what the request is without it.
UNSUPPORTED = {
    "max_completion_tokens": ("max_completion_tokens",),
    "response_format": ("response_format", "json_schema", "guided", "grammar", "structured output"),
    "temperature": ("temperature",),
}
REFUSING = (
    "support",
    "should be",
    "unavailable",
    "invalid",
    "unknown",
    "unrecognized",
    "not allowed",
    "failed to parse",
)


class Busy(Exception):
    """429. `seconds`: until when, if the server says so."""

    def __init__(self, message: str, seconds: float | None):
        super().__init__(message)
        self.seconds = seconds


class Broken(Exception):
    """No answer, or one that is none; the next try may have one. `seconds` as in `Busy`."""

    def __init__(self, message: str, seconds: float | None = None):
        super().__init__(message)
        self.seconds = seconds


class Rejected(Exception):
    """The server does not answer this request, and will not the next time. `too_long`: for its context."""

    def __init__(self, message: str, too_long: bool):
        super().__init__(message)
        self.too_long = too_long


class Unsupported(Exception):
    """The server does not take the part of a request that `part` names."""

    def __init__(self, message: str, part: str):
        super().__init__(message)
        self.part = part


class Unusable(Exception):
    """No request to this teacher will be answered: the message says why and what to do. `status` of the answer."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Reply:
    """A chat completion. `took` is None where the server told no tokens."""

    content: str | None
    finish: str
    refusal: str | None
    took: Size | None


class Connection:
    """The way to one teacher. Use it as an asynchronous context manager."""

    def __init__(self, teacher: Teacher, key: str | None):
        self._teacher = teacher
        self._key = key

    async def __aenter__(self) -> "Connection":
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._transport = transport_to(f"{self._teacher.address}/chat/completions", headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()

    async def ask(self, body: dict[str, Any], identity: str) -> Reply:
        """The answer. Raises `Busy`, `Broken`, `Rejected`, `Unsupported` or `Unusable`."""
        tokens = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        seconds = FIRST_TOKEN_SECONDS + tokens / TOKENS_A_SECOND
        content = json.dumps(body, ensure_ascii=False).encode()
        try:
            async with asyncio.timeout(seconds):
                answer = await self._transport.post(content, {"X-Request-ID": identity})
        except TimeoutError:
            raise Broken(f"no answer within {seconds:g} s") from None
        except (OSError, ValueError) as error:
            raise Broken(self._clean(f"{type(error).__name__}: {error}")) from None
        if answer.status != 200:
            text = self._clean(answer.body[:MOST_ERROR_BYTES].decode(errors="replace"))
            self._refuse(answer.status, text, _seconds(answer.retry_after), body)
        return self._reply(answer.body)

    def _reply(self, answer: bytes) -> Reply:
        try:
            found = json.loads(answer)
            choice = found["choices"][0]
            message = choice["message"]
            content, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
            usage = found.get("usage") or {}
            counts: list[Any] = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
            if not isinstance(content, str | None):
                raise TypeError("its content is no text")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise Broken(f"200, but no chat completion: {self._clean(answer[:400].decode(errors='replace'))}") from None
        counted = all(type(count) is int and 0 <= count < 2**40 for count in counts)
        took = Size(*map(int, counts)) if counted else None
        told = str(refusal)[:TOLD].encode(errors="replace").decode() if refusal else None
        return Reply(content and self._without_key(content), str(finish), told and self._clean(told), took)

    def _refuse(self, status: int, text: str, seconds: float | None, body: dict[str, Any]) -> None:
        name, small = self._teacher.name, text.lower()
        told = f"{status}: {text}"
        if status == 402 or (status in (403, 429) and any(word in small for word in QUOTA)):
            raise Unusable(
                f"teacher {name}: its quota is used up, or not paid ({told}); top it up and run again", status
            )
        if status == 401:
            variable = self._teacher.key_variable
            remedy = f"put a valid key into ${variable}" if variable else "set key_variable, and put a key into it"
            raise Unusable(f"teacher {name}: {self._teacher.address} wants another key ({told}); {remedy}", status)
        if status == 429:
            raise Busy(told, seconds)
        if status >= 500 or status in (408, 409, 425):
            raise Broken(told, seconds)
        if status in (400, 422):
            for part, words in UNSUPPORTED.items():
                taken = "max_tokens" if part == "max_completion_tokens" else part
                refused = any(word in small for word in words) and any(word in small for word in REFUSING)
                if taken in body and refused:
                    raise Unsupported(told, part)
        if status in (400, 413, 422):
            raise Rejected(told, status == 413 or any(word in small for word in TOO_LONG))
        if status == 404:
            remedy = f"expected the model {self._teacher.model!r} there; look at {self._teacher.address}/models"
            raise Unusable(
                f"teacher {name}: {self._teacher.address} does not have what is asked ({told}); {remedy}", 404
            )
        raise Unusable(f"teacher {name}: {self._teacher.address} answers {told}; expected 200", status)

    def _clean(self, text: str) -> str:
        """For people and logs: one line without the key, and without what a terminal obeys."""
        printable = (character if character.isprintable() else " " for character in self._without_key(text))
        return " ".join("".join(printable).split())[:TOLD]

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key and len(self._key) >= SHORTEST_SECRET else text


def _seconds(asked_for: str | None) -> float | None:
    """What Retry-After says, as seconds or as a date."""
    if not asked_for:
        return None
    try:
        seconds = float(asked_for)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked_for).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
