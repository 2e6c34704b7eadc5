"""One request on its way to an engine, and the answer on its way back.

What belongs here: attempts, retries, streaming, and what an answer leaves behind: a record, a log line, figures. What
does not: whether a request is let in (`front_door.py`), which engine it gets (`balancing.py`).
"""

import asyncio
import json
import time

from starlette.types import Receive, Scope, Send

from khmer_assets.server.audit_log import Record
from khmer_assets.server.connections import Connection, Unreachable
from khmer_assets.server.events import failure_in
from khmer_assets.server.front_door import FrontDoor
from khmer_assets.server.http_protocol import error_response
from khmer_assets.server.keys import Key
from khmer_assets.server.paths import ENGINE_PATHS
from khmer_assets.server.rate_limits import Allowance
from khmer_assets.server.refusals import Refused
from khmer_assets.server.request_log import log
from khmer_assets.server.requests import Body, Chat, Embeddings, Generation, Tokenization
from khmer_assets.server.stronger import Reply

MAX_ATTEMPTS = 2  # a request that has broken so many engines is not given to another
# For limits, of answers whose users left before the engine had told any tokens: roughly what it has done for them.
CHARACTERS_A_TOKEN = 3
TOKENS_A_SECOND = 30
LOGGED = (
    *("id", "request_id", "key_id", "endpoint", "model", "release", "adapter", "outcome"),
    *("seconds", "seconds_to_first_token", "finish_reason"),
)
HEADERS = (  # which tell a field of the record, where it has one
    (b"x-khmer-release", "release"),
    (b"x-khmer-adapter", "adapter"),
    (b"x-khmer-route", "route"),
    (b"x-khmer-route-reason", "route_reason"),
    (b"x-khmer-confidence", "confidence"),
)


class EngineStarting(Exception):
    """An engine that listens, but has not read its model yet."""


class EngineFailure(Exception):
    """An engine that broke off or said that the fault is its own."""


class Answer:
    """One request on its way to an engine, and the answer on its way back. Starlette calls it as a response."""

    def __init__(self, door: FrontDoor, path: str, body: Body, key: Key, allowance: Allowance | None, request_id: str):
        self.door = door
        self.path = path
        self.form = body  # in which the user gets the answer
        self.body = body.for_engine()
        self.allowance = allowance
        self.record = Record(door.audit, path, self.body, key.id, request_id)
        self.events = body.events(self.record.id)
        self.answered_by = {"model": "", "adapter": "", "tier": key.tier}
        self.status = 500
        self.started = False  # whether the user has got anything
        self.outcome = "failed"
        self.error: str | None = None
        self.closed = False
        self.asked: float | None = None  # since when an engine has been working on it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, until it is done, out of time, or nobody listens any more."""
        self.connection = scope["state"]["connection"]
        seconds = self.door.settings.request_seconds
        answering = asyncio.create_task(self._answer(send))
        listening = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({answering, listening}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                refused = _refusal(answering)
            elif self.closed:  # OpenAI's client leaves at the end mark
                refused = None
            elif listening.done():
                refused = None
                self.outcome, self.status = "cancelled", 499
                if self.connection.stalled:
                    self.error = f"the reader took nothing for {self.connection.stall_seconds:g} s"
                    self.door.metrics.stalled_readers.inc()
            else:
                refused = Refused(504, f"no whole answer within {seconds:g} s")
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
            else:
                event = self.events.broken(refused)
                await send({"type": "http.response.body", "body": event, "more_body": False})
        self._tell()

    def _tell(self) -> None:
        fields = self.record.fields
        self.door.metrics.answered(self.path, self.status, self.answered_by, fields)
        told = {name: fields[name] for name in LOGGED} | {"status": self.status, "tokens": self.record.tokens}
        log.info(json.dumps(told))

    async def _answer(self, send: Send) -> None:
        """Try engines until one answers: nothing is lost while the user has got nothing."""
        door = self.door
        deadline = self.record.started + door.settings.wait_seconds
        tried: set[int] = set()
        broken = 0
        while True:
            balance = door.embedding if isinstance(self.body, Embeddings) else door.balance
            port = await balance.engine(tried, deadline)
            try:
                with balance.counted(port):
                    return await self._from(port, send)
            except (Unreachable, EngineStarting):  # it has not begun with the request
                self.asked = None
                door.leave_alone(port)
            except (ConnectionError, EngineFailure) as error:
                self.asked = None
                broken += 1
                log.warning(json.dumps({"engine": port, "id": self.record.id, "failure": str(error) or repr(error)}))
                if not await door.connections.healthy(port):  # else it was perhaps the request
                    door.leave_alone(port)
                if self.started or broken >= MAX_ATTEMPTS:
                    raise Refused(502, "the engine broke off") from None
            tried.add(port)
            door.refresh()
            door.metrics.retries.inc()

    async def _from(self, port: int, send: Send) -> None:
        """One attempt. Raises `Unreachable`, `EngineStarting`, `EngineFailure`, `ConnectionError` and `Refused`."""
        door = self.door
        kind, version = door.kind_for(self.body.model), self._version()
        content = kind.content(self.body.model_copy(update={"model": version}))
        self.asked = time.monotonic()
        async with door.connections.asked(port, "POST", ENGINE_PATHS.get(self.path, self.path), content) as response:
            self.status = response.status
            if response.status == 503:
                raise EngineStarting
            if response.status >= 500 or response.status == 401:  # its key is ours, not the user's
                raise EngineFailure(f"it answered with status {response.status}")
            if response.status == 200 and self.body.streams():
                await self._stream(response, send)
                return
            answer = b"".join([piece async for piece in response])
            if response.status == 200 and (failure := failure_in(answer)):
                raise EngineFailure(failure)
            if response.status == 200:
                answer = self._judge(answer)
            self.outcome = "completed" if response.status == 200 else "refused"
            if response.status != 200:
                self.error = answer[:500].decode(errors="replace")
                if refused := kind.refusal(response.status, answer, self.path):
                    raise refused
            await self._give(answer, response.status, response.content_type, send)

    async def _give(self, answer: bytes, status: int, content_type: str, send: Send) -> None:
        """Let the user have a whole answer."""
        self.record.whole(answer)
        self._close()
        if status == 200:
            answer = self.form.told(answer, self.record.id)
        await self._start(send, status, content_type)
        await send({"type": "http.response.body", "body": answer, "more_body": False})

    def _judge(self, answer: bytes) -> bytes:
        """What of an engine's whole answer is given."""
        return answer

    def _version(self) -> str:
        """The version that is to answer, as the engine calls it; noted for who asks later. Raises `Refused`."""
        door, name = self.door, self.body.model
        if isinstance(self.body, Embeddings):
            self.answered_by |= {"model": name, "adapter": ""}
            return name
        release = door.state.release
        assert release is not None, "an engine serves a release"
        if name not in door.names:  # it was when the request came
            raise Refused(404, f"{name!r} is no longer served", code="model_not_found", parameter="model")
        adapter = door.names[name]
        self.record.fields |= {"release": release.digest, "adapter": adapter and adapter.digest}
        version = (adapter or release).names[1]
        self.answered_by |= {"model": version, "adapter": adapter.name if adapter else ""}
        return version

    async def _stream(self, response: Connection | Reply, send: Send) -> None:
        self.events = self.form.events(self.record.id)
        async for piece in response:
            if events := self._kept(piece):
                if not self.started:
                    self.record.first_byte = time.monotonic()
                    await self._start(send, 200, "text/event-stream")
                await send({"type": "http.response.body", "body": events, "more_body": True})  # waits for slow readers
                if not self.events.over:
                    await response.forward(self._pass_on)
            if self.events.over:
                break
        if self.events.refusal and not self.started:
            self.outcome = "refused"
            if refused := self.door.kind_for(self.body.model).refusal(*self.events.refusal, self.path):
                raise refused
        if not self.events.ended:
            raise EngineFailure(self.events.failure or "the stream has no end mark")
        self.outcome = "completed"
        self._close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        await response.rest()

    def _kept(self, piece: bytes) -> bytes:
        """What the user gets of it: whole events, which are in the journal now."""
        if not (events := self.events.whole(piece)):
            return b""
        self.record.append(events)
        return self.events.asked_for(events)

    def _pass_on(self, piece: bytes) -> bool:
        events = self._kept(piece)
        more = not events or self.connection.write_chunk(events)
        return more and not self.events.over

    async def _start(self, send: Send, status: int, content_type: str) -> None:
        self.started = True
        headers = [(b"content-type", content_type.encode())]
        headers += [(name, str(told).encode()) for name, field in HEADERS if (told := self.record.fields[field])]
        await send({"type": "http.response.start", "status": status, "headers": headers})

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                self.record.close(self.outcome, self.error)
            finally:
                self.door.answering -= 1
                read, written = self._used()
                if self.allowance is not None:
                    self.allowance.release(read + written)
                self.door.charge(self.record.fields["key_id"], read, written)

    def _used(self) -> tuple[int, int]:
        """Tokens read and written, for limits: with a schema that the answer had to fit."""
        used = self.record.fields.get("usage")
        told = (used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0) if used else self._estimate()
        return told[0] + (round(self.body.schema_characters() / CHARACTERS_A_TOKEN) if any(told) else 0), told[1]

    def _estimate(self) -> tuple[int, int]:
        """As `_used`, of an answer that its user did not wait for, of which the engine has told none."""
        if self.outcome in ("completed", "refused") or self.asked is None or isinstance(self.body, Tokenization):
            return 0, 0
        read = round(sum(map(len, self.body.texts())) / CHARACTERS_A_TOKEN)
        if not isinstance(self.body, Generation):
            return read, 0
        most = (self.body.max_completion_tokens if isinstance(self.body, Chat) else None) or self.body.max_tokens
        written = (time.monotonic() - self.asked) * TOKENS_A_SECOND
        return read, round((min(written, most) if most else written) * (self.body.n or 1))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(task: "asyncio.Task[None]") -> Refused | None:
    error = task.exception()
    if error is None or isinstance(error, Refused):
        return error
    log.error(json.dumps({"error": repr(error)}), exc_info=error)
    return Refused(500, "the gateway failed; its log tells why")
