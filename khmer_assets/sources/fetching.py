"""Requests to hosts that are not ours: one at a time, with a name, with pauses, with limits on size and time."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

USER_AGENT = "khmer-llm-factory/0.1 (text corpus of the Khmer language)"
TRIES = 5
FIRST_PAUSE = 1.0  # seconds before the second try; doubled before each further one
LONGEST_PAUSE = 120.0  # seconds, whatever Retry-After asks for
SILENCE = 30.0  # seconds without a byte after which a host hangs
LONGEST_ANSWER = 300.0  # seconds for the whole of an answer


def user_agent(contact: str | None) -> str:
    """The name under which requests are made, with an address to write to where there is one."""
    return USER_AGENT.replace(")", f"; {contact})") if contact else USER_AGENT


class Unreachable(Exception):
    """An address without a usable answer. The message names the address and says what came instead.

    `status` is that of an answer that will be the same the next time, else None.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """What a host answered; `body` is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Fetcher:
    """Fetches over one connection at a time, `delay` seconds apart. Use it as a context manager.

    Tried again, after the pause that the host asks for or a growing one, are broken connections, 429 and 5xx, and
    answers that `busy` recognizes.
    """

    def __init__(self, delay: float, contact: str | None = None):
        self._client = httpx.Client(
            headers={"User-Agent": user_agent(contact)},
            timeout=SILENCE,
            follow_redirects=True,
            max_redirects=5,
            limits=httpx.Limits(max_connections=1),
        )
        self._delay = delay
        self._last = -delay

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(
        self,
        url: str,
        parameters: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        expected: int = 200,
        most_bytes: int = 50_000_000,
        busy: Callable[[Answer], bool] = lambda answer: False,
    ) -> Answer:
        """The answer with the status `expected`. Raises `Unreachable` for every other end."""
        pause = FIRST_PAUSE
        for attempt in range(TRIES):
            asked: str | None = None
            try:
                answer = self._try(url, parameters, headers, expected, most_bytes)
                asked = answer.headers.get("Retry-After")
                if answer.status == expected and not busy(answer):
                    return answer
                problem = f"status {answer.status}" if answer.status != expected else "the host is busy"
                if answer.status not in (expected, 429) and answer.status < 500:
                    raise Unreachable(f"{url}: {problem}, expected {expected}", answer.status)
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = f"{type(error).__name__}: {error}"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise Unreachable(f"{url}: {error}") from None
            if attempt + 1 < TRIES:
                time.sleep(min(float(asked) if asked and asked.isdecimal() else pause, LONGEST_PAUSE))
                pause *= 2
        raise Unreachable(f"{url}: {problem}, {TRIES} times")

    def _try(
        self,
        url: str,
        parameters: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        expected: int,
        most_bytes: int,
    ) -> Answer:
        time.sleep(max(0.0, self._last + self._delay - time.monotonic()))
        started = time.monotonic()
        body = bytearray()
        try:
            with self._client.stream("GET", url, params=parameters, headers=headers) as response:
                if response.status_code == expected:  # else the body is not of interest, and may be endless
                    for block in response.iter_bytes(1 << 16):
                        body += block
                        if len(body) > most_bytes:
                            raise Unreachable(f"{url}: the answer is over {most_bytes:,} bytes", response.status_code)
                        if time.monotonic() - started > LONGEST_ANSWER:
                            raise Unreachable(f"{url}: the answer takes over {LONGEST_ANSWER:g} seconds")
                return Answer(response.status_code, response.headers, bytes(body))
        finally:
            self._last = time.monotonic()
