"""The gateway's paths, as a Starlette application.

What belongs here: what each path answers, and every error in OpenAI's shape. What does not: an engine's answer on its
way to the user (`answer.py`).
"""

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from khmer_assets.server.answer import Answer
from khmer_assets.server.front_door import FrontDoor
from khmer_assets.server.http_protocol import error_response, read_body, with_bounded_head
from khmer_assets.server.keys import Key
from khmer_assets.server.openapi import description
from khmer_assets.server.paths import BODIES, parse
from khmer_assets.server.rate_limits import Allowance
from khmer_assets.server.refusals import Refused
from khmer_assets.server.request_log import log
from khmer_assets.server.routed_answer import RoutedAnswer
from khmer_assets.server.state import AUTO_NAME

CHAT_PAGE = Path(__file__).parent / "chat_page.html"
HOUSEKEEPING_SECONDS = 3600
REQUEST_ID = re.compile(r"[\w.:+/=@-]{1,128}", re.ASCII)  # of a client's that is kept: no text, and safe in any log


def application(home: Path) -> ASGIApp:
    """The gateway as an ASGI application that keeps its state in `home`."""
    door = FrontDoor(home)
    routes = Routes(door)

    async def housekeeping() -> None:
        while True:
            if kept := await asyncio.to_thread(door.audit.forget_old):
                log.error(json.dumps({"not_forgotten": kept}))
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if settled := door.audit.settle(door.charge):
            log.warning(json.dumps({"settled": settled}))
        tasks = [asyncio.create_task(work) for work in (housekeeping(), door.look())]
        yield
        for task in tasks:
            task.cancel()

    app = Starlette(
        routes=[
            *(Route(path, routes.generate, methods=["POST"]) for path in BODIES),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/health", routes.health),
            Route("/metrics", routes.metrics),
            Route("/openapi.json", routes.openapi),
            Route("/", routes.page),
        ],
        exception_handlers=dict.fromkeys((Refused, HTTPException, ClientDisconnect, Exception), routes.refuse),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # else /health/ is answered with the name of any host that was sent
    return with_request_headers(with_bounded_head(app))


def with_request_headers(app: ASGIApp) -> ASGIApp:
    """The application, whose responses name their request, `x-request-id`, and what is left of its key's limits."""

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get("x-request-id", "")
        request.state.id = given if REQUEST_ID.fullmatch(given) else None
        request.state.key = request.state.allowance = None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request.state.id or secrets.token_hex(8)
                if request.state.allowance is not None:
                    headers.update(request.state.allowance.headers())
            await send(message)

        await app(scope, receive, send_with_headers)

    return named


class Routes:
    """What each path answers."""

    def __init__(self, door: FrontDoor):
        self.door = door

    async def generate(self, request: Request) -> Answer:
        """An answer of an engine."""
        door = self.door
        key, allowance = self._let_in(request)
        release = door.state.release
        if release is None:
            raise Refused(503, "nothing is served yet", retry_after=10)
        path = request.scope["path"]
        body = parse(BODIES[path], await read_body(request, door.settings), release.max_model_length)
        door.admit(body, key, allowance)
        kind = RoutedAnswer if body.model == AUTO_NAME else Answer
        answer = kind(door, path, body, key, allowance, request.state.id)
        request.state.id = answer.record.fields["request_id"]
        return answer

    async def models(self, request: Request) -> Response:
        """The models that the key may use."""
        _, allowance = self._let_in(request)
        return JSONResponse({"object": "list", "data": self.door.models(allowance)})

    async def model(self, request: Request) -> Response:
        """One model."""
        _, allowance = self._let_in(request)
        name = request.path_params["name"]
        self.door.check_model(name, allowance)
        return JSONResponse(next(model for model in self.door.models(allowance) if model["id"] == name))

    async def health(self, request: Request) -> Response:
        """Whether an engine answers, and what each has to do."""
        engines = await self._engines()
        ok = any(engines.values())
        running = {str(port): count for port, count in self.door.balance.running.items() if count}
        release = self.door.state.release
        told = {
            "status": "ok" if ok else "unavailable",
            "release": release.digest if release is not None else None,
            "engines": {str(port): well for port, well in engines.items()},
            "running": running,
        }
        return JSONResponse(told, 200 if ok else 503)

    async def metrics(self, request: Request) -> Response:
        """What Prometheus reads."""
        balance = self.door.balance
        embedding = self.door.embedding
        up = await self._engines() | await self._healthy(embedding.ports)
        running = balance.running + embedding.running
        text = self.door.metrics.text(up, running, balance.waiting + embedding.waiting)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        self.door.refresh()
        return JSONResponse(description(list(self.door.names)))

    async def page(self, request: Request) -> Response:
        """The chat page."""
        return HTMLResponse(CHAT_PAGE.read_bytes())

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Any error in OpenAI's shape."""
        headers: Mapping[str, str] = {}
        if isinstance(error, HTTPException):
            headers = error.headers or {}
            error = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
        elif isinstance(error, ClientDisconnect):
            error = Refused(400, "the request was not complete")
        elif not isinstance(error, Refused):
            log.error(json.dumps({"error": repr(error)}), exc_info=error)
            error = Refused(500, "the gateway failed; its log tells why")
        request.state.id = request.state.id or secrets.token_hex(8)
        endpoint = request.url.path if request.url.path in BODIES else "other"
        key: Key | None = request.state.key
        self.door.metrics.refused(endpoint, error.status, key.tier if key else "")
        told = {"request_id": request.state.id, "key_id": key and key.id, "endpoint": endpoint}
        log.info(json.dumps(told | {"status": error.status, "code": error.code}))
        response = error_response(error)
        response.headers.update(headers)
        return response

    def _let_in(self, request: Request) -> tuple[Key, Allowance | None]:
        """The request's key, and what it has left. Raises `Refused` without a valid one."""
        self.door.refresh()
        key = request.state.key = self.door.key_of(request.headers.get("authorization", ""))
        if key.revoked:
            raise Refused(401, "this API key is revoked", code="invalid_api_key")
        if key.has_expired():
            raise Refused(401, f"this API key has expired on {key.expires:%Y-%m-%d}", code="invalid_api_key")
        allowance = request.state.allowance = self.door.allowance_of(key)
        return key, allowance

    async def _engines(self) -> dict[int, bool]:
        """Whether the engine on each port says now that it is well."""
        self.door.refresh()
        return await self._healthy(self.door.state.ports)

    async def _healthy(self, ports: tuple[int, ...]) -> dict[int, bool]:
        return dict(zip(ports, await asyncio.gather(*map(self.door.connections.healthy, ports)), strict=True))
