"""/v1/responses stands for a chat, and its answer is told in OpenAI's items and events, whole, streamed, broken off."""

import json

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from khmer_assets.server.response_answers import ResponseEvents, response, whole_response
from khmer_assets.server.responses import Responses
from tests.server.gateways import WORDS, front

ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "តើមេឃ"}, {"type": "input_text", "text": "ភ្លៀងទេ?"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ចាំ", "annotations": []}]},
    {"type": "function_call", "call_id": "1", "name": "weather", "arguments": '{"a": 1}', "status": "completed"},
    {"type": "function_call", "call_id": "2", "name": "weather", "arguments": "", "id": "fc_1"},
    {"type": "function_call_output", "call_id": "1", "output": "ភ្លៀង"},
]
BEGUN = {"model": "khmer", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}


def test_items_are_turns_of_a_chat_and_calls_belong_to_the_turn_before_them():
    body = Responses.model_validate({"model": "khmer", "instructions": "ខ្លី", "input": ITEMS})
    system, user, assistant, tool = body.for_engine().messages
    assert (system.role, system.text(), user.text()) == ("system", "ខ្លី", "តើមេឃភ្លៀងទេ?")
    assert [(call.id, call.function.arguments) for call in assistant.tool_calls] == [("1", '{"a": 1}'), ("2", "{}")]
    assert (assistant.text(), tool.tool_call_id, tool.text()) == ("ចាំ", "1", "ភ្លៀង")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"previous_response_id": "resp_1"}, "nothing is kept"),
        ({"conversation": 0}, "nothing is kept"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "tag 'reasoning' found"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"tool_choice": {"type": "function", "name": "weather"}}, "none of the tools"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "a", "arguments": "{"}]}, "a JSON object"),
    ],
)
def test_what_is_not_here_is_refused_by_name(wrong, told):
    with pytest.raises(ValueError, match=told):
        Responses.model_validate({"model": "khmer", "input": "សួស្តី", **wrong})


def chunk(delta: dict, reason: str | None = None, **fields: object) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return b"data: " + json.dumps({"model": "khmer-a", "choices": choices, **fields}).encode() + b"\n\n"


def call(index: int, **function: str) -> dict:
    return {"tool_calls": [{"index": index, "id": f"call{index}", "function": function}]}


STREAM = [
    chunk({"role": "assistant", "content": None}),
    chunk({"content": "ចាំ"}),
    chunk({"content": "បន្តិច"}),
    chunk(call(0, name="weather", arguments='{"a"')),
    chunk(call(0, arguments=": 1}")),
    chunk(call(1, name="clock", arguments="{}")),
    chunk({}, "tool_calls"),
    b'data: {"model":"khmer-a","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}\n\n',
    b"data: [DONE]\n\n",
]


def events_of(sent: bytes) -> list[dict]:
    found = []
    for event in sent.split(b"\n\n")[:-1]:
        name, data = event.split(b"\n")
        found.append(json.loads(data.removeprefix(b"data: ")))
        assert name == f"event: {found[-1]['type']}".encode()
    return found


@given(st.lists(st.integers(1, len(b"".join(STREAM)) - 1), max_size=6))
def test_a_stream_in_any_pieces_is_the_response_that_its_last_event_tells(cuts):
    whole, reader, sent = b"".join(STREAM), ResponseEvents(response(dict(BEGUN), "1")), b""
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(whole)], strict=True):
        sent += reader.asked_for(reader.whole(whole[start:end]))
    events = events_of(sent)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    last = Response.model_validate(events[-1]["response"])
    assert reader.ended and events[-1]["type"] == "response.completed" and last.output_text == "ចាំបន្តិច"
    assert [(item.name, item.arguments) for item in last.output[1:]] == [("weather", '{"a": 1}'), ("clock", "{}")]
    assert last.usage is not None and last.usage.total_tokens == 7
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert deltas == last.output_text
    added, done = (
        [e["item"]["id"] for e in events if e["type"] == f"response.output_item.{x}"] for x in ("added", "done")
    )
    assert added == done == [item.id for item in last.output]


def test_a_whole_answer_that_was_cut_is_incomplete():
    message = {"content": "ចាំ", "tool_calls": None}
    answer = {"model": "khmer-a", "choices": [{"message": message, "finish_reason": "length"}], "usage": None}
    told = Response.model_validate_json(whole_response(response(dict(BEGUN), "1"), json.dumps(answer).encode()))
    assert (told.status, told.output_text, told.id) == ("incomplete", "ចាំ", "resp_1")


def test_through_the_gateway_it_is_streamed_broken_off_and_recorded(tmp_path):
    with front(tmp_path) as gateway:
        http = openai.DefaultHttpxClient(trust_env=False)
        client = openai.OpenAI(base_url=f"{gateway.address}/v1", api_key=gateway.key, http_client=http, max_retries=0)
        assert client.responses.create(model="khmer", input="សួស្តី").output_text == "".join(WORDS)
        with client.responses.stream(model="khmer", input="សួស្តី") as events:
            assert events.get_final_response().output_text == "".join(WORDS)
        assert gateway.engines[0].asked[-1]["messages"] == [{"role": "user", "content": "សួស្តី"}]
        gateway.engines[0].mood = "dying"
        with pytest.raises(openai.APIError, match="broke off"):
            list(client.responses.create(model="khmer", input="សួស្តី", stream=True))
        failed = gateway.record("failed")
        assert (failed["endpoint"], failed["output"]) == ("/v1/responses", WORDS[0])
        gateway.engines[0].mood = "refusing"
        with pytest.raises(openai.BadRequestError, match="too many tokens"):
            client.responses.create(model="khmer", input="សួស្តី")
