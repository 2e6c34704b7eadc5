"""The front door: an OpenAI-compatible gateway before the engines, with keys, limits, audit records and metrics.

    python -m khmer_assets.serving.gateway HOME SOCKET

The supervisor (`resources/supervisor.py`) starts it and lends it the listening socket of that number. Which engines
serve is read from `server.json`, at each request and only when the file has changed: so a deployment switches all
requests at once, and the running ones end where they began.
"""

import asyncio
import json
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import prometheus_client
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from khmer_assets.recipe import Gateway as GatewaySettings
from khmer_assets.serving import llama_cpp
from khmer_assets.serving.audit import AuditLog, Record
from khmer_assets.serving.connections import Connection, Connections, Unreachable
from khmer_assets.serving.keys import OWNER, Allowance, Key, KeyFile, file_version
from khmer_assets.serving.openapi import description
from khmer_assets.serving.requests import BODIES, Body, Generation, Refused, StreamOptions, parse
from resources.engines import ServerState, engine_key, gguf_file, kept_model

MAX_HEAD_BYTES = 32_768
MAX_DISCARDED_BODY = 64 * 1024 * 1024  # read and dropped, so that its sender can read why it is refused
ENGINE_REST_SECONDS = 1.0  # before an engine that could not be reached is tried again
MAX_ATTEMPTS = 2  # a request that has broken so many engines is not given to another
LOGGED = (
    *("id", "key_id", "endpoint", "model", "release", "adapter", "outcome"),
    *("seconds", "seconds_to_first_token", "finish_reason"),
)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS = prometheus_client.Counter("khmer_requests", "Requests by endpoint and status", ["endpoint", "status"])
OUTCOMES = prometheus_client.Counter("khmer_answers", "Answers by outcome", ["outcome"])
LATENCY = prometheus_client.Histogram("khmer_request_seconds", "Until the last byte", ["endpoint"], buckets=SECONDS)
FIRST_TOKEN = prometheus_client.Histogram("khmer_first_token_seconds", "Until the first byte", buckets=SECONDS)
TOKENS = prometheus_client.Counter("khmer_tokens", "Tokens read and written", ["kind"])
RETRIES = prometheus_client.Counter("khmer_retries", "Requests given to another engine")
RUNNING = prometheus_client.Gauge("khmer_running_requests", "Requests with an engine now", ["engine"])
ENGINE_UP = prometheus_client.Gauge("khmer_engine_up", "Whether an engine can be reached", ["engine"])
RELEASE = prometheus_client.Info("khmer_release", "The served release")

log = logging.getLogger("khmer.gateway")


class EngineStarting(Exception):
    """An engine that listens, but has not read its model yet."""


class EngineFailure(Exception):
    """An engine that broke off or said that the fault is its own."""


class Gateway:
    """All that requests share: the served release, keys, allowances, audit log, and the engines' load."""

    def __init__(self, home: Path):
        self.folder = home / "server"
        self.audit_folder = home / "audit"
        self.keys = KeyFile(self.folder)
        self.allowances: dict[str, Allowance] = {}
        self.running: Counter[int] = Counter()
        self.resting: dict[int, float] = {}  # engines that could not be reached, and until when
        self._seen: tuple[int, int] | None = None
        self.refresh()
        self.audit = AuditLog(self.audit_folder, self.settings.redact, self.settings.retention_days)
        self.connections = Connections(engine_key(self.folder))

    def refresh(self) -> None:
        """Read `server.json` again if it has changed."""
        seen = file_version(self.folder / "server.json")
        if seen == self._seen:
            return
        self._seen = seen
        self.state = ServerState.read(self.folder)
        self.names = self.state.names()
        release = self.state.release
        self.runs_llama_cpp = release is not None and gguf_file(kept_model(self.folder, release.digest)) is not None
        self.settings = GatewaySettings.model_validate(self.state.gateway)
        self.audit = AuditLog(self.audit_folder, self.settings.redact, self.settings.retention_days)
        self.allowances = {  # the limits may be others now
            identity: allowance
            for identity, allowance in self.allowances.items()
            if allowance.tier in self.settings.tiers.values()
        }
        self.resting.clear()
        ENGINE_UP.clear()
        RUNNING.clear()
        for port in self.state.ports:
            ENGINE_UP.labels(port).set(1)
        if self.state.release is not None:
            RELEASE.info({"digest": self.state.release.digest})

    def models(self) -> list[dict[str, Any]]:
        """The served names, as /v1/models shows them: `root` is the digest of what answers, `parent` its model's."""
        if (release := self.state.release) is None:
            return []
        return [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "khmer-llm-factory",
                "root": adapter.digest if adapter else release.digest,
                "parent": release.digest if adapter else None,
                "max_model_len": release.max_model_length,
            }
            for name, adapter in self.names.items()
        ]

    def key_of(self, request: Request) -> Key:
        """The key that came with the request. Raises `Refused` (401) without a valid one."""
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise Refused(401, "no API key: send the header `Authorization: Bearer KEY`", code="invalid_api_key")
        key = self.keys.find(text.strip())
        if key is None:
            raise Refused(401, "this API key is unknown or revoked", code="invalid_api_key")
        return key

    def allowance_of(self, key: Key) -> Allowance | None:
        """What the key has left; None for the owner's, which has no limits."""
        if key.id == OWNER:
            return None
        tier = self.settings.tiers.get(key.tier)
        if tier is None:
            raise Refused(
                403, f"the tier of this key, {key.tier!r}, is no longer in the recipe (serving.gateway.tiers)"
            )
        if key.id not in self.allowances:
            self.allowances[key.id] = Allowance(tier)
        return self.allowances[key.id]

    async def engine(self, tried: set[int]) -> int:
        """The engine with the least to do, and none of `tried` while there are others; waits when none runs."""
        deadline = time.monotonic() + self.settings.wait_seconds
        while True:
            self.refresh()
            now = time.monotonic()
            ready = [port for port in self.state.ports if self.resting.get(port, 0) <= now]
            if fresh := [port for port in ready if port not in tried] or ready:
                return min(fresh, key=lambda port: self.running[port])
            if now > deadline:
                raise Refused(503, "no engine runs at the moment; try again later", retry_after=10)
            await asyncio.sleep(0.05)

    def rest(self, port: int) -> None:
        """Leave an engine alone for a moment."""
        self.resting[port] = time.monotonic() + ENGINE_REST_SECONDS
        ENGINE_UP.labels(port).set(0)


class Answer:
    """One request on its way to an engine, and the answer on its way back. Starlette calls it as a response."""

    def __init__(self, gateway: Gateway, path: str, body: Body, key: Key, allowance: Allowance | None):
        self.gateway = gateway
        self.path = path
        self.body = body
        self.allowance = allowance
        self.record = Record(gateway.audit, path, body, key.id)
        self.asked_for_usage = isinstance(body, Generation) and bool(
            body.stream_options and body.stream_options.include_usage
        )
        self.status = 500
        self.started = False  # whether the user has got anything
        self.outcome = "failed"
        self.error: str | None = None
        self.closed = False
        self.pending = b""  # the beginning of an event of a streamed answer
        self.ended = False  # whether the stream's end mark has come

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until it is done, out of time, or nobody listens any more."""
        gateway, path = self.gateway, self.path
        self.write_chunk = scope["state"]["write_chunk"]
        answering = asyncio.create_task(self._answer(send))
        listening = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait(
                {answering, listening}, timeout=gateway.settings.request_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if answering.done():
                refused = _refusal(answering)
            elif listening.done():
                refused = None
                self.outcome, self.status = "cancelled", 499
            else:
                refused = Refused(504, f"no whole answer within {gateway.settings.request_seconds:g} s")
            if refused:
                self.error = refused.message
                self.status = refused.status
        finally:
            for task in (answering, listening):
                task.cancel()
            await asyncio.wait({answering, listening})
            self._close()
        if refused:
            if not self.started:
                await error_response(refused)(scope, receive, send)
            else:  # an error among the pieces: OpenAI's client raises it
                event = b"data: " + json.dumps(refused.body()).encode() + b"\n\n"
                await send({"type": "http.response.body", "body": event, "more_body": False})
        fields = self.record.fields
        LATENCY.labels(path).observe(fields["seconds"])
        REQUESTS.labels(path, self.status).inc()
        OUTCOMES.labels(self.outcome).inc()
        usage = fields["usage"] or {}
        for kind in ("prompt_tokens", "completion_tokens"):
            TOKENS.labels(kind).inc(usage.get(kind) or 0)
        told = {name: fields[name] for name in LOGGED} | {"status": self.status, "tokens": self.record.tokens}
        log.info(json.dumps(told))

    async def _answer(self, send: Send) -> None:
        """Try engines until one answers: nothing is lost while the user has got nothing."""
        tried: set[int] = set()
        broken = 0
        while True:
            port = await self.gateway.engine(tried)
            self.gateway.running[port] += 1
            try:
                return await self._from(port, send)
            except (Unreachable, EngineStarting):  # it has not begun with the request
                failure = "the engine cannot be reached"
            except (ConnectionError, EngineFailure) as error:
                failure = str(error) or repr(error)
                broken += 1
            finally:
                self.gateway.running[port] -= 1
            log.warning(json.dumps({"engine": port, "id": self.record.id, "failure": failure}))
            self.gateway.rest(port)
            if self.started or broken >= MAX_ATTEMPTS:
                raise Refused(502, "the engine broke off")
            tried.add(port)
            RETRIES.inc()

    async def _from(self, port: int, send: Send) -> None:
        release = self.gateway.state.release
        assert release is not None, "an engine serves a release"
        if self.body.model not in self.gateway.names:  # it was when the request came
            raise Refused(404, f"{self.body.model!r} is no longer served", code="model_not_found", parameter="model")
        adapter = self.gateway.names[self.body.model]
        self.record.fields |= {"release": release.digest, "adapter": adapter and adapter.digest}
        update: dict[str, Any] = {"model": (adapter or release).names[1]}
        if self.body.streams():
            update["stream_options"] = StreamOptions(include_usage=True)
        body = self.body.model_copy(update=update)
        runs_llama_cpp = self.gateway.runs_llama_cpp
        if runs_llama_cpp:
            content = json.dumps(llama_cpp.translated(body)).encode()
        else:
            content = body.model_dump_json(exclude_none=True).encode()
        async with self.gateway.connections.asked(port, "POST", self.path, content) as response:
            ENGINE_UP.labels(port).set(1)
            self.status = response.status
            if response.status == 503:
                raise EngineStarting
            if response.status >= 500 or response.status == 401:  # its key is ours, not the user's
                raise EngineFailure(f"it answered with status {response.status}")
            if response.status == 200 and self.body.streams():
                await self._stream(response, send)
                return
            answer = b"".join([piece async for piece in response])
            self._note_first_byte()
            self.outcome = "completed" if response.status == 200 else "refused"
            if response.status != 200:
                self.error = answer[:500].decode(errors="replace")
                if runs_llama_cpp:
                    raise llama_cpp.refusal(response.status, answer)
                if b'"error"' not in answer:
                    raise Refused(response.status, f"the served model does not answer {self.path}")
            self.record.whole(answer)
            self._close()
            await self._start(send, response.status, response.content_type)
            await send({"type": "http.response.body", "body": answer, "more_body": False})

    async def _stream(self, response: Connection, send: Send) -> None:
        self.pending = b""
        async for piece in response:
            if not (events := self._kept(piece)):
                continue
            if not self.started:
                self._note_first_byte()
                await self._start(send, 200, "text/event-stream")
            await send({"type": "http.response.body", "body": events, "more_body": True})  # waits for slow readers
            await response.forward(self._pass_on)
        if not self.ended:
            raise EngineFailure("the stream has no end mark")
        self.outcome = "completed"
        self._close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _kept(self, piece: bytes) -> bytes:
        """What the user gets of it: whole events, which are in the journal now."""
        events, mark, self.pending = (self.pending + piece).rpartition(b"\n\n")
        if not mark:
            return b""
        events += mark
        self.record.append(events)
        self.ended = self.ended or b"data: [DONE]" in events
        if not self.asked_for_usage and b'"choices":[]' in events:
            events = b"".join(event + mark for event in events.split(mark) if event and b'"choices":[]' not in event)
        return events

    def _pass_on(self, piece: bytes) -> bool:
        events = self._kept(piece)
        return not events or self.write_chunk(events)

    async def _start(self, send: Send, status: int, content_type: str) -> None:
        self.started = True
        headers = [
            (b"content-type", content_type.encode()),
            (b"x-request-id", self.record.id.encode()),
            (b"x-khmer-release", str(self.record.fields["release"]).encode()),
        ]
        if adapter := self.record.fields["adapter"]:
            headers.append((b"x-khmer-adapter", adapter.encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})

    def _note_first_byte(self) -> None:
        self.record.first_byte = time.monotonic()
        FIRST_TOKEN.observe(self.record.first_byte - self.record.started)

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                self.record.close(self.outcome, self.error)
            finally:
                if self.allowance is not None:
                    self.allowance.release(self.record.tokens)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(task: "asyncio.Task[None]") -> Refused | None:
    error = task.exception()
    if error is None or isinstance(error, Refused):
        return error
    log.error(json.dumps({"error": repr(error)}), exc_info=error)
    return Refused(500, "the gateway failed; its log tells why")


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


def application(home: Path) -> ASGIApp:
    """The gateway as an ASGI application that keeps its state in `home`."""
    gateway = Gateway(home)

    async def generate(request: Request) -> Any:
        gateway.refresh()
        key = gateway.key_of(request)
        release = gateway.state.release
        if release is None:
            raise Refused(503, "nothing is served yet", retry_after=10)
        path = request.scope["path"]
        body = parse(BODIES[path], await read_body(request, gateway.settings), release.max_model_length)
        if body.model not in gateway.names:
            message = f"there is no model {body.model!r}; served are {', '.join(gateway.names)}"
            raise Refused(404, message, code="model_not_found", parameter="model")
        if gateway.runs_llama_cpp:
            llama_cpp.translated(body)  # refused before it counts
        if sum(gateway.running.values()) >= gateway.settings.max_requests:
            raise Refused(503, "too many requests at the moment", retry_after=1)
        allowance = gateway.allowance_of(key)
        if allowance is not None:
            if not allowance.may_use(body.model):
                raise Refused(403, f"this key may not use {body.model}", code="model_not_allowed", parameter="model")
            allowance.admit()
        return Answer(gateway, path, body, key, allowance)

    async def models(request: Request) -> Response:
        gateway.refresh()
        gateway.key_of(request)
        return JSONResponse({"object": "list", "data": gateway.models()})

    async def model(request: Request) -> Response:
        gateway.refresh()
        gateway.key_of(request)
        name = request.path_params["name"]
        for found in gateway.models():
            if found["id"] == name:
                return JSONResponse(found)
        raise Refused(404, f"there is no model {name!r}", code="model_not_found", parameter="model")

    async def health(request: Request) -> Response:
        gateway.refresh()
        engines = {str(port): await reachable(port) for port in gateway.state.ports}
        ok = any(engines.values())
        running = {str(port): count for port, count in gateway.running.items() if count}
        release = gateway.state.release.digest if gateway.state.release else None
        told = {"status": "ok" if ok else "unavailable", "release": release, "engines": engines, "running": running}
        return JSONResponse(told, 200 if ok else 503)

    async def reachable(port: int) -> bool:
        with suppress(Unreachable, ConnectionError, TimeoutError):
            async with asyncio.timeout(5), gateway.connections.asked(port, "GET", "/health") as response:
                await response.read()
                return response.status == 200
        return False

    async def metrics(request: Request) -> Response:
        for port in {*gateway.state.ports, *gateway.running}:
            RUNNING.labels(port).set(gateway.running[port])
        return Response(prometheus_client.generate_latest(), media_type="text/plain; version=0.0.4")

    async def page(request: Request) -> Response:
        return FileResponse(Path(__file__).parent / "chat.html")

    async def openapi(request: Request) -> Response:
        gateway.refresh()
        return JSONResponse(description([model["id"] for model in gateway.models()]))

    async def housekeeping() -> None:
        while True:
            gateway.audit.forget_old()
            await asyncio.sleep(3600)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if settled := gateway.audit.settle():
            log.warning(json.dumps({"settled": settled}))
        keeping = asyncio.create_task(housekeeping())
        yield
        keeping.cancel()

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        elif isinstance(error, ClientDisconnect):
            error = Refused(400, "the request was not complete")
        elif not isinstance(error, Refused):
            error = Refused(500, "the gateway failed; its log tells why")
        endpoint = request.url.path if request.url.path in BODIES else "other"
        REQUESTS.labels(endpoint, error.status).inc()
        log.info(json.dumps({"status": error.status, "endpoint": endpoint, "code": error.code}))
        return error_response(error)

    app = Starlette(
        routes=[
            *(Route(path, generate, methods=["POST"]) for path in BODIES),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/openapi.json", openapi),
            Route("/", page),
        ],
        exception_handlers={
            Refused: refuse,
            HTTPException: refuse,
            ClientDisconnect: refuse,
            Exception: refuse,
        },
        lifespan=lifespan,
    )

    async def with_bounded_head(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            size = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["raw_path"])
            if size + len(scope["query_string"]) > MAX_HEAD_BYTES:
                refused = Refused(431, f"the address and the headers have more than {MAX_HEAD_BYTES:,} bytes")
                await error_response(refused)(scope, receive, send)
                return
        await app(scope, receive, send)

    return with_bounded_head


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's, for senders that never finish: a head that is too long or a request that takes too long ends it."""

    seconds = 60.0

    def connection_made(self, transport: Any) -> None:
        """A new connection must begin with a request."""
        self._head = 0
        self._in_head = True
        self._timer: asyncio.TimerHandle | None = None
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
        self.scope["state"]["write_chunk"] = self.write_chunk
        super().on_headers_complete()

    def write_chunk(self, data: bytes) -> bool:
        """Send a piece of an answer that uvicorn has begun, as it would; whether the user can take more at once."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self.flow.write_paused

    def on_message_complete(self) -> None:
        """All of the request is here."""
        self._disarm()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._disarm()
        super().connection_lost(exc)


def main() -> None:
    """Serve on the socket of the given number until SIGTERM; running answers may end."""
    home, number = Path(sys.argv[1]), int(sys.argv[2])
    # only this program's own lines: they hold neither prompts nor keys
    handler = RotatingFileHandler(home / "server" / "requests.jsonl", maxBytes=10_000_000, backupCount=5)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    settings = GatewaySettings.model_validate(ServerState.read(home / "server").gateway)
    BoundedProtocol.seconds = settings.body_seconds + 10
    config = uvicorn.Config(
        application(home),
        http=BoundedProtocol,
        loop="uvloop",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=15,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=number)])


class JsonLines(logging.Formatter):
    """A JSON object a line: time, level and what the message says."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; an exception's traceback is a field of it."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return f"{json.dumps(line)[:-1]}, {record.getMessage()[1:]}"


if __name__ == "__main__":
    main()
