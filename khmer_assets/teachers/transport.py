"""HTTP to a teacher's server: a request out, a whole answer in, over connections that are kept open.

What an answer means does not belong here (`connection.py`). Where the environment names a proxy for the address, a
library does it; without one this does, in a quarter of the library's processor time a request.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httptools

CONNECT_SECONDS = 20.0
IDLE_SECONDS = 4.0  # a kept connection is not used after; uvicorn closes them after 5
MOST_BYTES = 16_000_000  # of an answer


@dataclass(frozen=True)
class Answered:
    """An answer's status, its Retry-After and its body."""

    status: int
    retry_after: str | None
    body: bytes


class Transport(Protocol):
    """A way to one server."""

    async def post(self, content: bytes, headers: dict[str, str]) -> Answered:
        """The answer to a request. Raises `OSError` or `ValueError` where there is none."""

    async def close(self) -> None:
        """End the connections."""


def transport_to(address: str, headers: dict[str, str]) -> Transport:
    """The way to POST to `address`, always with these headers."""
    parts = urlsplit(address)
    if parts.scheme in getproxies() and not proxy_bypass(parts.netloc):
        return Proxied(address, headers)
    return Direct(address, headers)


class Direct:
    """Connections of our own, one request at a time each."""

    def __init__(self, address: str, headers: dict[str, str]):
        parts = urlsplit(address)
        assert parts.hostname is not None, "settings refuse an address without a host"
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        lines = {"Host": parts.netloc, "Accept": "application/json", **headers}
        self._head = f"POST {parts.path or '/'} HTTP/1.1\r\n" + _lines(lines)
        self._idle: list[_Wire] = []

    async def post(self, content: bytes, headers: dict[str, str]) -> Answered:
        """As in `Transport`."""
        request = f"{self._head}{_lines(headers)}Content-Length: {len(content)}\r\n\r\n".encode() + content
        wire = self._kept() or await self._new()
        try:
            try:
                answer = await wire.ask(request)
            except _Stale:
                wire = await self._new()
                answer = await wire.ask(request)
        except BaseException:
            wire.transport.abort()
            raise
        if wire.reusable:
            wire.idle_since = time.monotonic()
            self._idle.append(wire)
        else:
            wire.transport.abort()
        return answer

    async def close(self) -> None:
        """As in `Transport`."""
        for wire in self._idle:
            wire.transport.abort()

    def _kept(self) -> "_Wire | None":
        while self._idle:
            wire = self._idle.pop()
            if wire.reusable and time.monotonic() - (wire.idle_since or 0) < IDLE_SECONDS:
                return wire
            wire.transport.abort()
        return None

    async def _new(self) -> "_Wire":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return (await loop.create_connection(_Wire, self._host, self._port, ssl=self._tls))[1]
        except TimeoutError:
            raise OSError(f"no connection within {CONNECT_SECONDS:g} s") from None


def _lines(headers: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


class _Stale(ConnectionError):
    """A kept connection that ended before any of the answer: servers may close one just when it is used."""


class _Wire(asyncio.Protocol):
    """One connection. `idle_since`: None until it was used."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.idle_since: float | None = None
        self.reusable = True
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answered] | None = None

    async def ask(self, request: bytes) -> Answered:
        """Send a request and wait for the whole answer."""
        self._pieces: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._size = 0
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def _fail(self, error: Exception) -> None:
        self.reusable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.transport.abort()

    def _finish(self) -> None:
        retry_after = self._headers.get(b"retry-after")
        body = b"".join(self._pieces)
        if self._answer is not None and not self._answer.done():
            told = None if retry_after is None else retry_after.decode("latin-1")
            self._answer.set_result(Answered(self._parser.get_status_code(), told, body))

    # called by the loop

    def connection_made(self, transport: Any) -> None:
        """It is open."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        if self._answer is None or self._answer.done():
            self._fail(ValueError("the server sent what nobody asked for"))
            return
        self._size += len(data)
        if self._size > MOST_BYTES:
            self._fail(ValueError(f"the answer is over {MOST_BYTES:,} bytes"))
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ValueError(f"the answer is not HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed, which ends an answer that tells no length."""
        self.reusable = False
        if self._answer is None or self._answer.done():
            return
        if self._size == 0 and self.idle_since is not None:
            self._fail(_Stale("the server has closed the connection"))
        elif error is None and self._pieces and not self._headers.keys() & {b"content-length", b"transfer-encoding"}:
            self._finish()
        else:
            self._fail(ConnectionError(f"the server broke off ({error or 'it closed the connection'})"))

    # called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the answer."""
        self._headers[name.lower()] = value

    def on_body(self, piece: bytes) -> None:
        """A piece of the body."""
        self._pieces.append(piece)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it only announces another."""
        if self._parser.get_status_code() >= 200:
            self.reusable = self._parser.should_keep_alive()
            self._finish()


class Proxied:
    """Through the proxy that the environment names."""

    def __init__(self, address: str, headers: dict[str, str]):
        import aiohttp

        self._address, self._errors = address, aiohttp.ClientError
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Accept-Encoding": "identity", **headers},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            trust_env=True,
        )

    async def post(self, content: bytes, headers: dict[str, str]) -> Answered:
        """As in `Transport`."""
        read = bytearray()
        posted = self._session.post(self._address, data=content, headers=headers, allow_redirects=False)
        try:
            async with posted as response:
                async for block in response.content.iter_any():
                    read += block
                    if len(read) > MOST_BYTES:
                        raise ValueError(f"the answer is over {MOST_BYTES:,} bytes")
                return Answered(response.status, response.headers.get("Retry-After"), bytes(read))
        except self._errors as error:
            raise OSError(f"{type(error).__name__}: {error}") from None

    async def close(self) -> None:
        """As in `Transport`."""
        await self._session.close()
