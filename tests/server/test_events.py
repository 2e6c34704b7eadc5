"""A stream comes in pieces that end anywhere; users get whole events, and of those what they have asked for."""

import pytest

from khmer_assets.server.events import Events, failure_in
from tests.server.gateways import USAGE, event

WORD = event({"choices": [{"index": 0, "delta": {"content": "ភ្នំ"}}]})
UNTIL_NOW = event({"choices": [{"index": 0, "delta": {"content": "ភ្នំ"}}], "usage": {**USAGE, "details": {"a": 1}}})
LLAMA = event({"choices": [{"index": 0, "delta": {"content": "ភ្នំ"}}], "timings": {"cache_n": 1, "predicted_ms": 2.5}})
SPOKEN = event({"choices": [{"index": 0, "delta": {"content": ',"usage":{"error":"data: [DONE]\n\n'}}]})
ERROR = event({"error": {"message": "EngineCore died", "code": 500}})
ABORTED = event({"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "abort"}]})
TOKENS = event({"choices": [], "usage": USAGE})
END = b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_events_are_whole_wherever_the_stream_is_cut(size):
    events, stream = Events(with_usage=False), WORD + TOKENS + END
    found = [events.whole(stream[start : start + size]) for start in range(0, len(stream), size)]
    assert b"".join(found) == stream
    assert all(piece.endswith(b"\n\n") for piece in found if piece)


def test_the_beginning_of_an_event_is_kept_back_until_its_end_comes():
    events = Events(with_usage=False)
    assert events.whole(WORD + WORD[:10]) == WORD
    assert events.whole(WORD[10:-1]) == b""
    assert events.whole(WORD[-1:]) == WORD


def test_how_many_tokens_were_used_is_told_to_those_who_asked():
    events = WORD + TOKENS + END
    assert Events(with_usage=True).asked_for(events) == events
    assert Events(with_usage=False).asked_for(events) == WORD + END
    assert Events(with_usage=False).asked_for(TOKENS) == b""


def test_how_many_tokens_were_used_until_now_is_told_to_nobody():
    for told in (UNTIL_NOW, LLAMA):
        for with_usage in (False, True):
            assert Events(with_usage).asked_for(told) == WORD
        assert Events(with_usage=True).asked_for(told + TOKENS + END) == WORD + TOKENS + END
    assert Events(with_usage=False).asked_for(SPOKEN) == SPOKEN


@pytest.mark.parametrize("failure", [ERROR, ABORTED])
@pytest.mark.parametrize("size", [1, 50, 10_000])
def test_a_stream_in_which_the_engine_tells_of_its_failure_has_not_ended(failure, size):
    events, stream = Events(with_usage=False), WORD + SPOKEN + failure + TOKENS + END
    found = [events.whole(stream[start : start + size]) for start in range(0, len(stream), size)]
    assert b"".join(found) == WORD + SPOKEN
    assert not events.ended and events.failure


def test_a_text_about_errors_and_ends_is_neither():
    events = Events(with_usage=False)
    assert events.whole(SPOKEN * 2) == SPOKEN * 2
    assert not events.ended and events.failure is None
    assert failure_in(SPOKEN.removeprefix(b"data: ")) is None
    assert failure_in(b'{"choices":[],"error":null}') is None and failure_in(b'["error"') is None


def test_a_stream_has_ended_when_its_end_mark_is_whole():
    events = Events(with_usage=False)
    events.whole(WORD + END[:-1])
    assert not events.ended
    events.whole(END[-1:])
    assert events.ended
