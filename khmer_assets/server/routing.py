"""Who answers a request for `khmer-auto`: the model alone, an adapter, or the stronger model that the recipe names.

What belongs here: the decision, from what was said. What does not: what the router has learned (`router_file.py`), and
the request on its way (`routed_answer.py`).

A whole answer is first asked of the model, and is the user's where its confidence reaches the threshold; else the
question, the instructions before it and the confidence decide. A stream is decided without the confidence: few tokens
of an answer say less, and more would have to be held back (`benchmarks/router.py` measures both). Who is not satisfied
goes one step further at each turn that says so: from the model to the adapter of the question's domain, and on to the
stronger model.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.messages import AnyMessage
from khmer_assets.server.router_file import REMEDY, Router
from khmer_assets.server.state import AUTO_NAME, MODEL_NAME, ModelServerError, ServerState

DISSATISFIED = 0.5  # the chance from which on a turn counts as that
TURNS_LOOKED_AT = 16  # of a user, the last ones
REMEMBERED = 10_000  # answers: who gave each

Reason = Literal[
    "sure",  # the model's own answer reaches the threshold
    "question",  # the question is in the adapter's domain, or in none
    "unsure",  # the model's own answer does not reach the threshold
    "not_loaded",  # the adapter of the domain is not loaded, or is not for this key
    "dissatisfied",  # the user was not satisfied before
    "failed",  # who should have answered could not
    "no_chat",  # only chats are routed
]


class Route(NamedTuple):
    """The name of who answers, and why."""

    name: str
    reason: Reason


class Former(NamedTuple):
    """An answer of before: the id of its record, and the name of who gave it."""

    record: str
    route: str


@dataclass(frozen=True)
class Said:
    """What a conversation says. `question`: what is to be answered, as the `instructions` of the system say.
    `dissatisfied`: whether the last turn says that the answer before it was not good; `ever`: whether any turn did."""

    instructions: str
    question: str
    dissatisfied: bool
    ever: bool


def instructions_of(messages: Iterable[tuple[str, str]]) -> str:
    """What the system says in messages (role, text)."""
    return "\n".join(text for role, text in messages if role in ("system", "developer"))


def said(router: Router, messages: Sequence[AnyMessage]) -> Said:
    """Read a conversation. "Wrong, try again" is no question: that is the one before."""
    turns: list[tuple[str, bool]] = []  # what the user says, and whether that is of an answer
    answered = False
    for message in messages:
        if message.role == "user":
            turns.append((message.text(), answered))
        answered = answered or message.role == "assistant"
    turns = turns[-TURNS_LOOKED_AT:]
    unhappy = [after and router.dissatisfaction(text) >= DISSATISFIED for text, after in turns]
    questions = [text for (text, _), complains in zip(turns, unhappy, strict=True) if not complains]
    question = questions[-1] if questions else turns[-1][0] if turns else ""
    instructions = instructions_of((message.role, message.text()) for message in messages)
    return Said(instructions, question, bool(unhappy) and unhappy[-1], any(unhappy))


class Guide:
    """A router, and whom it may send a request to: `may_use` tells of a name. `stronger` is a name, or ""."""

    def __init__(self, router: Router, may_use: Callable[[str], bool], stronger: str = ""):
        self.router = router
        self.may_use = may_use
        self.stronger = stronger

    def first(self, told: Said, former: Former | None) -> Route:
        """Who is to answer what was said, before anybody has. `former`: who gave the last answer, if it is known."""
        route = self._of_domain(told, "question")
        if not told.ever:
            return route
        ladder = [name for name in (route.name, self.stronger) if name not in ("", MODEL_NAME)]
        if not ladder:
            return Route(MODEL_NAME, route.reason)
        step = ladder.index(former.route) + told.dissatisfied if former and former.route in ladder else 0
        return Route(ladder[min(step, len(ladder) - 1)], "dissatisfied")

    def second(self, told: Said, confidence: float | None) -> Route:
        """Who answers when the model has, with this confidence."""
        if confidence is None:
            return self._of_domain(told, "question")
        if confidence >= self.router.about.threshold:
            return Route(MODEL_NAME, "sure")
        return self._of_domain(told, "unsure", confidence)

    def _of_domain(self, told: Said, reason: Reason, confidence: float | None = None) -> Route:
        domain = self.router.domain(told.instructions, told.question, confidence)
        if domain is None:
            return Route(MODEL_NAME, "question")
        name = f"{MODEL_NAME}-{domain}"
        return Route(name, reason) if self.may_use(name) else Route(MODEL_NAME, "not_loaded")


class Conversations:
    """Who gave the last answers: as many as a gateway remembers, until it ends. Texts are not kept."""

    def __init__(self) -> None:
        self._answers: OrderedDict[bytes, Former] = OrderedDict()

    def remember(self, key: str, messages: Sequence[AnyMessage], answer: str, former: Former) -> None:
        """Note who gave the answer to these messages."""
        digest = _digest(key, [(message.role, message.text()) for message in messages] + [("assistant", answer)])
        self._answers[digest] = former
        self._answers.move_to_end(digest)
        if len(self._answers) > REMEMBERED:
            self._answers.popitem(last=False)

    def former(self, key: str, messages: Sequence[AnyMessage]) -> Former | None:
        """Who gave the last answer in these messages, if it was given to this key, and not too long ago."""
        last = max((place for place, message in enumerate(messages) if message.role == "assistant"), default=None)
        if last is None:
            return None
        return self._answers.get(_digest(key, [(one.role, one.text()) for one in messages[: last + 1]]))


def _digest(key: str, turns: Sequence[tuple[str, str]]) -> bytes:
    found = hashlib.blake2b(key.encode(), digest_size=16)
    for role, text in turns:
        text = text.strip()
        found.update(f"\0{role}\0{len(text)}\0{text}".encode(errors="surrogatepass"))
    return found.digest()


def router_of(state: ServerState, folder: Path) -> tuple[Router | None, str]:
    """The router of the served release, or None and what to tell of that. `folder` holds the server's state."""
    wanted = f"{AUTO_NAME} needs a router, and none is served: set router in the recipe, and {REMEDY}"
    if state.router is None or state.release is None:
        return None, wanted
    if state.router.base != state.release.base:
        return None, f"the router was trained for another model than the served release; {REMEDY}"
    try:
        return Router.load(kept_model(folder, state.router.digest)), ""
    except ModelServerError as error:
        return None, str(error)
