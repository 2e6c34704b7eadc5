"""The bytes of a streamed answer, made into whole server-sent events.

What belongs here: where events end, and which of them a user has asked for. What does not: where they come from and go
(`answer.py`), and what they say (`audit_log.py`).
"""

END_MARK = b"data: [DONE]"  # the last event of a stream that has not broken off
BETWEEN = b"\n\n"
USAGE = b'"choices":[]'  # of the event that tells how many tokens were used, and nothing else


class Events:
    """The events of one stream. `with_usage`: whether the user has asked for the event that tells of tokens."""

    def __init__(self, with_usage: bool) -> None:
        self.with_usage = with_usage
        self.ended = False  # whether the stream's end mark has come
        self._pending = b""  # the beginning of an event

    def whole(self, piece: bytes) -> bytes:
        """The events that this piece of the stream completes."""
        events, mark, self._pending = (self._pending + piece).rpartition(BETWEEN)
        if not mark:
            return b""
        events += mark
        self.ended = self.ended or END_MARK in events
        return events

    def asked_for(self, events: bytes) -> bytes:
        """Those of whole events that the user gets."""
        if not self.with_usage and USAGE in events:
            events = b"".join(event + BETWEEN for event in events.split(BETWEEN) if event and USAGE not in event)
        return events
