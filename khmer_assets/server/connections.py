"""HTTP connections to engines, kept open from one request to the next.

What belongs here: asking one engine, and its answer piece by piece. What does not: which engine (`balancing.py`), and
what an answer means (`answer.py`). A library's client wakes a task for each piece: the gateway then took a third more
processor time.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httptools

CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 3.0  # for an engine to say that it is well: Prometheus waits 10 for all of them
IDLE_SECONDS = 30.0  # vLLM closes idle connections later than that, llama.cpp sooner
MAX_WAITING_BYTES = 65_536  # come from the engine but not yet sent on; then it is not read until they are


class Unreachable(Exception):
    """Nothing listens there, or it does not accept: the engine has not seen the request."""


class Stale(ConnectionError):
    """A kept connection that ended before any of the answer: engines may close one just when it is used."""


class Connection(asyncio.Protocol):
    """One connection, with one request at a time. `status` and `content_type` are the answer's."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.complete = True  # no answer is due
        self.idle_since: float | None = None  # None: it has not been used
        self._error: str | None = None
        self._pieces: list[bytes] = []
        self._waiting = 0  # bytes in `_pieces`
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._parser = httptools.HttpResponseParser(self)

    async def ask(self, request: bytes) -> None:
        """Send a request, and return when the head of its answer is here. Raises `ConnectionError`."""
        self.status, self.content_type = 0, ""
        self._begun = self.complete = False
        self.transport.write(request)
        while not self.status:
            if self._error and self.idle_since is not None and not self._begun:
                raise Stale(self._error)
            await self._more()

    async def read(self) -> bytes:
        """What has come since the last call, at least a byte; nothing at the end. Raises `ConnectionError`."""
        while not self._pieces:
            if self.complete:
                return b""
            await self._more()
        return self._taken()

    async def forward(self, take: Callable[[bytes], bool]) -> None:
        """Give each piece to `take` at once, until the end or until it returns False. Raises `ConnectionError`."""
        if self._pieces or self.complete:
            return
        self._take = take
        try:
            while self._take is not None and not self.complete:
                await self._more()
        finally:
            self._take = None

    async def rest(self) -> None:
        """Wait for the end of an answer of which nothing more is needed: the connection can then be kept."""
        with suppress(ConnectionError):
            while await self.read():
                pass

    def _taken(self) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        if self._waiting > MAX_WAITING_BYTES and not self._error:
            self.transport.resume_reading()
        self._waiting = 0
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The rest of the answer, in pieces as they come."""
        while data := await self.read():
            yield data

    async def _more(self) -> None:
        if self._error:
            raise ConnectionError(self._error)
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: str) -> None:
        self._error = self._error or error
        self.transport.abort()
        self._wake()

    # called by the loop

    def connection_made(self, transport: Any) -> None:
        """It is open."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self._begun = True
        if self.complete:
            self._fail("the engine sent what nobody asked for")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the engine's answer is not HTTP: {error}")
        if self._take is None:
            self._wake()
        elif self._pieces:
            try:
                if not self._take(self._taken()):
                    self._take = None
                    self._wake()
            except Exception as error:  # its caller's, who waits
                self._take = None
                if self._waiter is not None and not self._waiter.done():
                    self._waiter.set_exception(error)
        if self.complete:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed."""
        self._fail("the engine closed the connection" if error is None else str(error))

    # called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the answer."""
        if name.lower() == b"content-type":
            self.content_type = value.decode("latin-1").partition(";")[0]

    def on_headers_complete(self) -> None:
        """The head of the answer is here."""
        self.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(piece)
        before, self._waiting = self._waiting, self._waiting + len(piece)
        if before <= MAX_WAITING_BYTES < self._waiting:
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self.complete = True
        if not self._parser.should_keep_alive():
            self._error = "the engine closes the connection"


class Connections:
    """Connections to all engines on 127.0.0.1, which want `key`."""

    def __init__(self, key: str):
        self.headers = f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        self._idle: defaultdict[int, list[Connection]] = defaultdict(list)

    @asynccontextmanager
    async def asked(self, port: int, method: str, path: str, content: bytes = b"") -> AsyncIterator[Connection]:
        """Ask an engine; the answer's head is here at once, the body is for `read`.

        Leaving early ends the connection, and with it the engine's work. Raises `Unreachable` and `ConnectionError`.
        """
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{self.headers}"
        request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        connection = self._kept(port) or await self._new(port)
        try:
            try:
                await connection.ask(request)
            except Stale:
                try:
                    connection = await self._new(port)
                except Unreachable as error:  # it has perhaps died of this request
                    raise ConnectionError(str(error)) from None
                await connection.ask(request)
            yield connection
        finally:
            if connection.complete and not connection._error and not connection._pieces:
                connection.idle_since = time.monotonic()
                self._idle[port].append(connection)
            else:
                connection.transport.abort()

    async def healthy(self, port: int) -> bool:
        """Whether the engine says now that it is well."""
        with suppress(Unreachable, ConnectionError, TimeoutError):
            async with asyncio.timeout(HEALTH_SECONDS), self.asked(port, "GET", "/health") as response:
                await response.read()
                return response.status == 200
        return False

    def _kept(self, port: int) -> Connection | None:
        idle = self._idle[port]
        now = time.monotonic()
        while idle:
            connection = idle.pop()
            if not connection._error and now - (connection.idle_since or 0) < IDLE_SECONDS:
                return connection
            connection.transport.abort()
        return None

    async def _new(self, port: int) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return (await loop.create_connection(Connection, "127.0.0.1", port))[1]
        except OSError as error:  # TimeoutError is one
            raise Unreachable(str(error)) from None
