"""A gateway on a real socket, before engines that are real servers and say what the tests want them to say."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from khmer_assets.server.http_protocol import BoundedProtocol
from khmer_assets.server.keys import engine_key, secret
from khmer_assets.server.routes import application
from khmer_assets.server.state import ModelVersion, ServerState

WORDS = ("ភ្នំ", "ពេញ", "។")
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
# all that vLLM says of a message
EMPTY = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
MESSAGE = {"role": "assistant", "content": "".join(WORDS), **EMPTY}
RELEASE = ModelVersion(digest="a" * 16, max_model_length=64)


class StandIn:
    """Answers like an engine.

    `mood`: well, slow, silent (nothing for ever), starting (status 503), broken (500), locked (401), refusing (400),
    dying (ends a stream early), aborting (and says so), erring (an error and the end mark under status 200, as vLLM
    does it), stillborn (the same before the first word), late (the same, and the request is wrong), flooding (words for
    ever), lingering (says nothing after the end mark, and does not end either), dropping (is killed after the end
    mark). `moods`: those of the next answers. `healthy`: what /health says. `missing`: models that it does not have.
    `logprob`: of each word, where it is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.mood = "well"
        self.moods: list[str] = []
        self.healthy = True
        self.missing: set[str] = set()
        self.logprob = -0.001
        self.asked: list[dict[str, Any]] = []
        self.gone = threading.Event()
        self.key = engine_key(folder)
        self.app = Starlette(
            routes=[
                Route("/health", lambda _: Response(status_code=200 if self.healthy else 503)),
                Route("/v1/chat/completions", self.answer, methods=["POST"]),
                Route("/v1/completions", self.answer, methods=["POST"]),
                Route("/tokenize", self.tokens, methods=["POST"]),
            ]
        )

    async def answer(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {self.key}"
        body = await request.json()
        self.asked.append(body)
        mood = self.moods.pop(0) if self.moods else self.mood
        if mood == "silent":
            await asyncio.Event().wait()
        if mood == "starting":
            return JSONResponse({"error": {"message": "Loading model"}}, 503)
        if mood == "broken":
            return JSONResponse({"error": {"message": "out of memory"}}, 500)
        if mood == "locked":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if body["model"] in self.missing:
            return JSONResponse({"error": {"message": "there is no such model", "type": "NotFoundError"}}, 404)
        if mood == "refusing":
            return JSONResponse({"error": {"message": "too many tokens", "type": "BadRequestError"}}, 400)
        common = {"id": "1", "created": 1, "model": body["model"]}
        told: list[Any] = [
            {"token": word, "logprob": self.logprob, "bytes": None, "top_logprobs": []} for word in WORDS
        ]
        logprobs = [{"content": [one]} for one in told] if body.get("logprobs") else [None] * len(told)
        if body.get("stream"):
            pieces = self.pieces(common, body["stream_options"], mood, logprobs)
            return StreamingResponse(pieces, media_type="text/event-stream")
        if mood == "slow":
            await asyncio.sleep(30)
        reason = "abort" if mood == "aborting" else "stop"
        choice = {"index": 0, "message": MESSAGE, "finish_reason": reason}
        choice["logprobs"] = {"content": told} if body.get("logprobs") else None
        return JSONResponse({**common, "object": "chat.completion", "choices": [choice], "usage": USAGE})

    async def tokens(self, request: Request) -> Response:
        return JSONResponse({"tokens": list((await request.json())["prompt"].encode())})

    async def pieces(self, common: dict[str, Any], options: dict[str, bool], mood: str, logprobs: list[Any]) -> Any:
        common["object"] = "chat.completion.chunk"
        try:
            for number, word in enumerate(WORDS):
                if mood == "late":
                    yield event({"error": {"message": "no such token", "type": "BadRequestError", "code": 400}})
                    break
                if mood == "stillborn" or (mood == "erring" and number):
                    yield event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}})
                    break
                while mood == "flooding":
                    yield event({**common, "choices": [{"index": 0, "delta": {"content": "ក" * 20_000}}]})
                    await asyncio.sleep(0)
                last = number == len(WORDS) - 1
                reason = ("abort" if mood == "aborting" else "stop") if last else None
                delta = {"content": word}
                choices = [{"index": 0, "delta": delta, "logprobs": logprobs[number], "finish_reason": reason}]
                used = {"prompt_tokens": 7, "total_tokens": 8 + number, "completion_tokens": 1 + number}
                told = {"usage": used} if options.get("continuous_usage_stats") else {}
                yield event({**common, "choices": choices, **told})
                if mood == "dying":
                    raise ConnectionError("killed")
                await asyncio.sleep(30 if mood == "slow" else 0)
            else:
                yield event({**common, "choices": [], "usage": USAGE})
            yield b"data: [DONE]\n\n"
            if mood == "lingering":
                await asyncio.sleep(30)
            if mood == "dropping":
                raise ConnectionError("killed")
        finally:
            self.gone.set()


def event(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


@contextmanager
def listening(app: Any, **settings: Any) -> Iterator[int]:
    """Serve `app` in a thread; the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class Front:
    """A gateway that keeps its state in `home`, and its engines."""

    def __init__(self, home: Path, port: int, engines: list[StandIn], ports: list[int]):
        self.home = home
        self.folder = home / "server"
        self.address = f"http://127.0.0.1:{port}"
        self.port = port
        self.engines = engines
        self.ports = ports
        self.key = secret(self.folder / "api_key")

    def records(self) -> list[dict[str, Any]]:
        files = sorted((self.home / "audit").glob("????-??-??/*.json"))
        return [json.loads(file.read_text()) for file in files]

    def record(self, outcome: str) -> dict[str, Any]:
        """The only record of this outcome; it may be written a moment after the user has seen the end."""
        for _ in range(3000):
            found = [record for record in self.records() if record["outcome"] == outcome]
            if found:
                (one,) = found
                return one
            time.sleep(0.01)
        raise AssertionError(f"no record is {outcome}: {self.records()}")


@contextmanager
def front(home: Path, engines: int = 1, dead: int = 0, **settings: Any) -> Iterator[Front]:
    """A gateway before `engines` that answer and `dead` ones, where nothing listens."""
    folder = home / "server"
    folder.mkdir(parents=True)
    stand_ins = [StandIn(folder) for _ in range(engines)]
    with listening_all(stand_ins) as ports:
        for _ in range(dead):
            with socket.create_server(("127.0.0.1", 0)) as closed:
                ports.insert(0, closed.getsockname()[1])
        ServerState(release=RELEASE, ports=tuple(ports), gateway=settings).write(folder)
        BoundedProtocol.seconds = settings.get("body_seconds", 30) + 1
        with listening(application(home), http=BoundedProtocol) as port:
            yield Front(home, port, stand_ins, ports)


@contextmanager
def listening_all(engines: list[StandIn]) -> Iterator[list[int]]:
    if not engines:
        yield []
        return
    with listening(engines[0].app) as port, listening_all(engines[1:]) as others:
        yield [port, *others]
