"""HTTP towards users: what of a request is read at all, and a refusal as a response.

What belongs here: bounds on heads, bodies and the time that they take. What does not: what a body says (`requests.py`).
"""

import asyncio
import socket
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from khmer_assets.server.gateway_settings import GatewaySettings
from khmer_assets.server.refusals import Refused

MAX_HEAD_BYTES = 32_768
MAX_DISCARDED_BODY = 64 * 1024 * 1024  # read and dropped, so that its sender can read why it is refused


def error_response(refused: Refused) -> Response:
    """A refusal as OpenAI would send it."""
    return JSONResponse(refused.body(), refused.status, headers=refused.headers)


async def read_body(request: Request, settings: GatewaySettings) -> bytes:
    """The body. Raises `Refused`: 413 when it is too long, 408 when it comes too slowly."""
    body, size = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for piece in request.stream():
                size += len(piece)
                if size <= settings.max_body_bytes:
                    body.append(piece)
                elif size > MAX_DISCARDED_BODY:
                    break
    except TimeoutError:
        raise Refused(408, f"the request was not complete after {settings.body_seconds:g} s") from None
    if size > settings.max_body_bytes:
        raise Refused(413, f"the request has more than {settings.max_body_bytes:,} bytes") from None
    return b"".join(body)


def with_bounded_head(app: ASGIApp) -> ASGIApp:
    """The application, before which requests with too long a head are refused (431)."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["raw_path"])
            if size + len(scope["query_string"]) > MAX_HEAD_BYTES:
                refused = Refused(431, f"the address and the headers have more than {MAX_HEAD_BYTES:,} bytes")
                await error_response(refused)(scope, receive, send)
                return
        await app(scope, receive, send)

    return bounded


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's, for senders that never finish and readers that never read.

    A head that is too long or a request that takes too long ends it, and so do bytes that are not taken for
    `stall_seconds`: the kernel, which alone knows, aborts the connection.
    """

    seconds = 60.0
    stall_seconds = 30.0
    stalled = False  # whether it has ended so

    def connection_made(self, transport: Any) -> None:
        """A new connection must begin with a request."""
        self._head = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None
        milliseconds = round(self.stall_seconds * 1000)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        super().connection_made(transport)
        self._arm()

    def _arm(self) -> None:
        self._disarm()
        self._timer = self.loop.call_later(self.seconds, self.transport.close)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def data_received(self, data: bytes) -> None:
        """Count what has come of a head."""
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head += len(data)
            if self._head > MAX_HEAD_BYTES:
                self.send_400_response("The headers are too long.")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._head, self._in_head = 0, True
        self._arm()

    def on_headers_complete(self) -> None:
        """The body comes next."""
        self._in_head = False
        self.scope["state"]["connection"] = self
        super().on_headers_complete()

    def write_chunk(self, data: bytes) -> bool:
        """Send a piece of an answer that uvicorn has begun, as it would; whether the user can take more at once.

        A task would have to await `send` for each piece: that costs a tenth to a fifth more of the gateway's processor
        time, also with the pieces of 15 ms joined.
        """
        if self.transport.is_closing():  # the user has left, which uvicorn will tell in a moment
            return False
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self.flow.write_paused

    def on_message_complete(self) -> None:
        """All of the request is here."""
        self._disarm()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._disarm()
        self.stalled = isinstance(exc, TimeoutError)
        super().connection_lost(exc)
