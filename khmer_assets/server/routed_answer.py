"""An answer of `khmer-auto` on its way: of whom it comes, and whether somebody else gives it in the end.

What belongs here: what differs from any other answer (`answer.py`): the route, the log-probabilities that tell the
confidence, and the one other try that there may be. What does not: who is chosen (`routing.py`).
"""

import json
import time
from collections.abc import Iterable
from typing import Any

from pydantic_core import from_json, to_json
from starlette.types import Send

from khmer_assets.server.answer import Answer, EngineFailure
from khmer_assets.server.events import BETWEEN
from khmer_assets.server.front_door import FrontDoor
from khmer_assets.server.keys import Key
from khmer_assets.server.rate_limits import Allowance
from khmer_assets.server.refusals import Refused
from khmer_assets.server.request_log import log
from khmer_assets.server.requests import Body, Chat
from khmer_assets.server.routing import Former, Guide, Route, said
from khmer_assets.server.state import MODEL_NAME
from khmer_assets.server.stronger import StrongerFailure

LOGPROBS = b'"logprobs":{'  # of an event that has some


class Rerouted(Exception):
    """The model has answered, and somebody else is to."""

    def __init__(self, route: Route):
        super().__init__(route.name)
        self.route = route


class RoutedAnswer(Answer):
    """A request for `khmer-auto` and its answer."""

    def __init__(self, door: FrontDoor, path: str, body: Body, key: Key, allowance: Allowance | None, request_id: str):
        super().__init__(door, path, body, key, allowance, request_id)
        self.wanted = self.body  # as it was asked
        self.dropped = (0, 0)  # tokens read and written of an answer that was not given
        self.logprobs: list[float] = []  # of the model's own answer
        self.former: Former | None = None
        router, chat = door.router, self.wanted
        # whether the answer is one text, of which a confidence tells
        self.one_text = isinstance(chat, Chat) and (chat.n or 1) == 1 and not chat.may_call()
        self.judged = False  # whether the model answers first, and its answer decides
        assert router is not None, "the name is served with a router alone"
        if not isinstance(chat, Chat):
            self._take(Route(MODEL_NAME, "no_chat"))
            return
        may_use = (lambda name: name in door.names) if allowance is None else self._allowed(allowance)
        stronger = door.state.router and door.state.router.stronger
        self.guide = Guide(router, may_use, stronger.name if stronger else "")
        self.said = said(router, chat.messages)
        self.former = door.conversations.former(key.id, chat.messages)
        self.record.fields["dissatisfied"] = self.said.dissatisfied
        if self.said.dissatisfied and self.former:
            self.record.fields["dissatisfied_with"] = self.former.record
        route = self.guide.first(self.said, self.former)
        self.judged = not (self.body.streams() or self.said.ever) and self.one_text
        self._take(Route(MODEL_NAME, "question") if self.judged else route)

    def _allowed(self, allowance: Allowance) -> Any:
        return lambda name: name in self.door.names and allowance.may_use(name)

    def _take(self, route: Route) -> None:
        """Ask this one. The engine is to tell the probabilities of the model's own answer."""
        told = {"logprobs": True} if route.name == MODEL_NAME and self.one_text else {}
        self.body = self.wanted.model_copy(update={"model": route.name, **told})
        self.record.fields |= {"route": route.name, "route_reason": route.reason}
        self.record.fields |= {"release": None, "adapter": None}
        self.logprobs = []

    @property
    def route(self) -> str:
        """The name of who is asked now."""
        return str(self.record.fields["route"])

    async def _answer(self, send: Send) -> None:
        """As any answer; where who was chosen cannot, the model does while the user has got nothing."""
        try:
            await self._of_route(send)
        except Rerouted as rerouted:
            self.judged = False
            self._take(rerouted.route)
            try:
                await self._of_route(send)
            except (Refused, StrongerFailure) as error:
                await self._instead(error, send)
        except (Refused, StrongerFailure) as error:
            await self._instead(error, send)

    async def _of_route(self, send: Send) -> None:
        router = self.door.state.router
        stronger = router.stronger if router is not None else None
        if stronger is None or self.route != stronger.name:
            await super()._answer(send)
            return
        self.answered_by |= {"model": stronger.name, "adapter": ""}
        self.asked = time.monotonic()
        try:
            async with self.door.stronger.asked(stronger, self.body) as reply:
                self.status = reply.status
                if self.body.streams():
                    await self._stream(reply, send)
                    return
                answer = b"".join([piece async for piece in reply])
                self.outcome = "completed"
                await self._give(answer, reply.status, reply.content_type, send)
        except (EngineFailure, Refused) as error:  # in a stream that began well
            raise StrongerFailure(str(error)) from None

    async def _instead(self, error: Refused | StrongerFailure, send: Send) -> None:
        # 404: it was taken away meanwhile; 502: engines have broken of it
        hopeless = isinstance(error, Refused) and error.status not in (404, 502)
        if self.started or self.route == MODEL_NAME or hopeless:
            raise error if isinstance(error, Refused) else Refused(502, "who answered broke off")
        log.warning(json.dumps({"route": self.route, "id": self.record.id, "failure": str(error)}))
        self.outcome, self.status, self.error = "failed", 500, None
        self._take(Route(MODEL_NAME, "failed"))
        await super()._answer(send)

    def _judge(self, answer: bytes) -> bytes:
        """A whole answer, as far as the user has asked for it. Raises `Rerouted` where somebody else is to answer."""
        if self.route != MODEL_NAME or not self.one_text:
            return answer
        told = from_json(answer)
        self._note(told.get("choices") or [])
        confidence = self._confidence()
        if self.judged:
            route = self.guide.second(self.said, confidence)
            self.record.fields["confidence"] = confidence
            if route.name != MODEL_NAME:
                used = told.get("usage") or {}
                self.dropped = used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0
                raise Rerouted(route)
            self.record.fields["route_reason"] = route.reason
        return to_json(told)

    def _kept(self, piece: bytes) -> bytes:
        events = self.events.whole(piece)
        if not events:
            return b""
        if LOGPROBS in events and self.one_text:
            events = self._without_logprobs(events)
        self.record.append(events)
        return self.events.asked_for(events)

    def _without_logprobs(self, events: bytes) -> bytes:
        found = []
        for event in events.split(BETWEEN)[:-1]:
            if LOGPROBS in event:
                told = from_json(event.removeprefix(b"data:"))
                self._note(told.get("choices") or [])
                event = b"data: " + to_json(told)
            found.append(event + BETWEEN)
        return b"".join(found)

    def _note(self, choices: Iterable[dict[str, Any]]) -> None:
        """Keep the log-probabilities, and take them away where the user has not asked for them."""
        unasked = not (isinstance(self.wanted, Chat) and self.wanted.logprobs)
        for choice in choices:
            for token in (choice.get("logprobs") or {}).get("content") or []:
                value = token.get("logprob")
                self.logprobs.append(float("nan") if value is None else value)
            if unasked:
                choice["logprobs"] = None

    def _confidence(self) -> float | None:
        router = self.guide.router
        return router.about.scaling.confidence(self.logprobs)

    def _close(self) -> None:
        if self.closed:
            return
        if self.logprobs and self.route == MODEL_NAME:
            self.record.fields["confidence"] = self._confidence()
        super()._close()
        output = self.record.fields.get("output")
        if self.outcome == "completed" and isinstance(self.wanted, Chat) and isinstance(output, str):
            former = Former(self.record.id, self.route)
            self.door.conversations.remember(self.record.fields["key_id"], self.wanted.messages, output, former)

    def _used(self) -> tuple[int, int]:
        read, written = super()._used()
        return read + self.dropped[0], written + self.dropped[1]
