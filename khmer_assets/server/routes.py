"""The gateway's paths, as a Starlette application.

What belongs here: what each path answers, and every error in OpenAI's shape. What does not: an engine's answer on its
way to the user (`answer.py`).
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from khmer_assets.server import metrics
from khmer_assets.server.answer import Answer
from khmer_assets.server.connections import Unreachable
from khmer_assets.server.front_door import FrontDoor
from khmer_assets.server.http_protocol import error_response, read_body, with_bounded_head
from khmer_assets.server.keys import Key
from khmer_assets.server.openapi import description
from khmer_assets.server.refusals import Refused
from khmer_assets.server.request_log import log
from khmer_assets.server.requests import BODIES, parse

CHAT_PAGE = Path(__file__).parent / "chat_page.html"
HOUSEKEEPING_SECONDS = 3600


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
        if settled := door.audit.settle():
            log.warning(json.dumps({"settled": settled}))
        keeping = asyncio.create_task(housekeeping())
        yield
        keeping.cancel()

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
        exception_handlers={
            Refused: refuse,
            HTTPException: refuse,
            ClientDisconnect: refuse,
            Exception: refuse,
        },
        lifespan=lifespan,
    )
    return with_bounded_head(app)


class Routes:
    """What each path answers."""

    def __init__(self, door: FrontDoor):
        self.door = door

    async def generate(self, request: Request) -> Answer:
        """An answer of an engine."""
        door = self.door
        key = self._let_in(request)
        release = door.state.release
        if release is None:
            raise Refused(503, "nothing is served yet", retry_after=10)
        path = request.scope["path"]
        body = parse(BODIES[path], await read_body(request, door.settings), release.max_model_length)
        return Answer(door, path, body, key, door.admit(key, body))

    async def models(self, request: Request) -> Response:
        """All models."""
        self._let_in(request)
        return JSONResponse({"object": "list", "data": self.door.models()})

    async def model(self, request: Request) -> Response:
        """One model."""
        self._let_in(request)
        name = request.path_params["name"]
        for found in self.door.models():
            if found["id"] == name:
                return JSONResponse(found)
        raise Refused(404, f"there is no model {name!r}", code="model_not_found", parameter="model")

    async def health(self, request: Request) -> Response:
        """Whether an engine answers, and what each has to do."""
        door = self.door
        door.refresh()
        engines = {str(port): await self._reachable(port) for port in door.state.ports}
        ok = any(engines.values())
        running = {str(port): count for port, count in door.balance.running.items() if count}
        release = door.state.release.digest if door.state.release else None
        told = {"status": "ok" if ok else "unavailable", "release": release, "engines": engines, "running": running}
        return JSONResponse(told, 200 if ok else 503)

    async def metrics(self, request: Request) -> Response:
        """What Prometheus reads."""
        text = metrics.text(self.door.state.ports, self.door.balance.running)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        self.door.refresh()
        return JSONResponse(description([model["id"] for model in self.door.models()]))

    async def page(self, request: Request) -> Response:
        """The chat page."""
        return FileResponse(CHAT_PAGE)

    def _let_in(self, request: Request) -> Key:
        self.door.refresh()
        return self.door.key_of(request.headers.get("authorization", ""))

    async def _reachable(self, port: int) -> bool:
        with suppress(Unreachable, ConnectionError, TimeoutError):
            async with asyncio.timeout(5), self.door.connections.asked(port, "GET", "/health") as response:
                await response.read()
                return response.status == 200
        return False


async def refuse(request: Request, error: Exception) -> Response:
    """Any error in OpenAI's shape."""
    if isinstance(error, HTTPException):
        error = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    elif isinstance(error, ClientDisconnect):
        error = Refused(400, "the request was not complete")
    elif not isinstance(error, Refused):
        error = Refused(500, "the gateway failed; its log tells why")
    endpoint = request.url.path if request.url.path in BODIES else "other"
    metrics.REQUESTS.labels(endpoint, error.status).inc()
    log.info(json.dumps({"status": error.status, "endpoint": endpoint, "code": error.code}))
    return error_response(error)
