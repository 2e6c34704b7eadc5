"""The bytes of a streamed answer, made into whole server-sent events.

What belongs here: where events end, which of them a user has asked for, and how an engine says in them that it is done
or has failed. What does not: where they come from and go (`answer.py`), and what else they say (`audit_log.py`).
"""

import re

from pydantic_core import from_json, to_json

from khmer_assets.server.refusals import Refused

END_MARK = b"data: [DONE]"  # the last event of a stream that has not broken off
BETWEEN = b"\n\n"
USAGE = b'"choices":[]'  # of the event that tells how many tokens were used, and nothing else
# how many tokens were used until now, which engines tell in each event because the gateway asks them to
UNTIL_NOW = re.compile(rb',"(?:usage|timings)":\{(?:[^{}]|\{[^{}]*\})*\}')
# A quotation mark within a text has a backslash before it: no answer that speaks of errors looks like one.
ERROR = b'"error"'
ABORTED = b'"finish_reason":"abort"'  # vLLM ended the answer, because it stops


class Events:
    """The events of one stream. `with_usage`: whether the user has asked for the event that tells of tokens."""

    def __init__(self, with_usage: bool) -> None:
        self.with_usage = with_usage
        self.ended = False  # whether the stream's end mark has come
        self.failure: str | None = None  # what the engine has said instead of going on; nothing after that counts
        self.refusal: tuple[int, bytes] | None = None  # the failure, where it is the request's: its status and event
        self._pending = b""  # the beginning of an event

    @property
    def over(self) -> bool:
        """Whether nothing more of the stream counts."""
        return self.ended or self.failure is not None

    def whole(self, piece: bytes) -> bytes:
        """The events that this piece of the stream completes, up to one that tells of a failure."""
        events, mark, self._pending = (self._pending + piece).rpartition(BETWEEN)
        if not mark or self.failure is not None:
            return b""
        events += mark
        if ERROR in events or ABORTED in events:
            events = self._before_failure(events)
        self.ended = self.failure is None and (self.ended or has_ended(events))
        return events

    def asked_for(self, events: bytes) -> bytes:
        """Those of whole events that the user gets."""
        if USAGE not in events:
            return UNTIL_NOW.sub(b"", events)
        kept = []
        for event in events.split(BETWEEN)[:-1]:
            if USAGE not in event:
                kept.append(UNTIL_NOW.sub(b"", event) + BETWEEN)
            elif self.with_usage:
                kept.append(event + BETWEEN)
        return b"".join(kept)

    def broken(self, refused: Refused) -> bytes:
        """An event that says why nothing more comes; OpenAI's client raises it."""
        return b"data: " + to_json(refused.body()) + BETWEEN

    def _before_failure(self, events: bytes) -> bytes:
        start = 0
        while (end := events.find(BETWEEN, start)) >= 0:
            event = events[start:end].removeprefix(b"data:")
            if (failure := failure_in(event)) is not None:
                self.failure = failure
                if (status := _status(event)) is not None:
                    self.refusal = (status, event)
                return events[:start]
            start = end + len(BETWEEN)
        return events


def _status(event: bytes) -> int | None:
    """The status of a failure that is the user's: vLLM looks at some of a request after it has answered with 200."""
    try:
        code = from_json(event)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) and 400 <= code < 500 else None


def has_ended(events: bytes) -> bool:
    """Whether the last of whole events is the end mark, which a text in an event cannot be."""
    return (BETWEEN + events).endswith(BETWEEN + END_MARK + BETWEEN)


def failure_in(answer: bytes) -> str | None:
    """What an engine that answers with status 200 says of its failure, in an event's data or a whole answer, if any."""
    if ABORTED in answer:
        return "the engine has aborted the answer"
    if ERROR not in answer:
        return None
    try:
        error = from_json(answer).get("error")
    except (ValueError, AttributeError):  # it is not an object in JSON
        return None
    message = error.get("message") if isinstance(error, dict) else error
    return None if error is None else f"the engine said: {message}"[:500]
