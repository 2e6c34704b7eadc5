"""The OpenAI client works unchanged, bad requests never reach an engine, and nothing answered is unrecorded."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.server.http_protocol import BoundedProtocol
from khmer_assets.server.key_usage import KeyUsage
from khmer_assets.server.keys import KeyFile
from khmer_assets.server.state import AdapterVersion, ModelVersion, ServerState
from tests.server.gateways import MESSAGE, RELEASE, USAGE, WORDS, front

QUESTION = [{"role": "user", "content": "តើរាជធានីឈ្មោះអ្វី?"}]
ANSWER = "".join(WORDS)
TIERS = {
    "small": {"requests_a_minute": 2, "tokens_a_minute": 1000, "streams": 1, "models": ["khmer-*"]},
    "large": {"requests_a_minute": 200},
}


@pytest.fixture
def gateway(tmp_path):
    with front(tmp_path, tiers=TIERS) as started:
        yield started


def client(gateway, key=None) -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=f"{gateway.address}/v1", api_key=key or gateway.key, http_client=http, max_retries=0)


def post(gateway, body=None, key=None, content=None, path="/v1/chat/completions") -> httpx.Response:
    headers = {b"Authorization": f"Bearer {key or gateway.key}".encode()}
    content = json.dumps(body).encode() if content is None else content
    return httpx.post(gateway.address + path, content=content, headers=headers, timeout=20, trust_env=False)


def chat(**fields):
    return {"model": "khmer", "messages": QUESTION, **fields}


def error_of(response) -> dict:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_the_openai_client_gets_an_answer_that_names_its_release(gateway):
    answer = client(gateway).chat.completions.create(**chat(user="somchai", temperature=0))
    assert answer.choices[0].message.content == ANSWER
    assert answer.model == RELEASE.names[1]
    assert gateway.engines[0].asked[0]["temperature"] == 0
    assert "user" not in gateway.engines[0].asked[0]


def test_the_openai_client_streams_without_seeing_what_it_has_not_asked_for(gateway):
    pieces = list(client(gateway).chat.completions.create(**chat(stream=True)))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ANSWER
    options = {"include_usage": True}
    *_, last = client(gateway).chat.completions.create(**chat(stream=True, stream_options=options))
    assert last.usage is not None
    assert last.usage.total_tokens == USAGE["total_tokens"]


def test_the_openai_client_sends_an_answer_again_as_the_next_turn(gateway):
    messages = list(QUESTION)
    answer = client(gateway).chat.completions.create(**chat()).choices[0].message
    assert answer.to_dict().keys() == MESSAGE.keys()  # the empty ones too
    called = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    elsewhere = {"role": "assistant", "content": None, "tool_calls": [called], "reasoning_content": "ខ្ញុំគិត"}
    parts = [{"type": "text", "text": "អរគុណ", "cache_control": {"type": "ephemeral"}}]
    messages += [answer, *QUESTION, elsewhere, {"role": "user", "content": parts}]
    empty = {"tools": [], "logit_bias": {}, "reasoning_effort": None}
    second = client(gateway).chat.completions.create(**chat(messages=messages, **empty))
    assert second.choices[0].message.content == ANSWER
    assert gateway.engines[0].asked[-1] == {
        "model": RELEASE.names[1],
        "messages": [
            *QUESTION,
            {"role": "assistant", "content": ANSWER},
            *QUESTION,
            {"role": "assistant", "content": ""},
            {"role": "user", "content": [{"type": "text", "text": "អរគុណ"}]},
        ],
    }


def test_the_asynchronous_openai_client_streams(gateway):
    async def ask() -> str:
        http = openai.DefaultAsyncHttpxClient(trust_env=False)
        asynchronous = openai.AsyncOpenAI(base_url=f"{gateway.address}/v1", api_key=gateway.key, http_client=http)
        stream = await asynchronous.chat.completions.create(**chat(stream=True))
        return "".join([piece.choices[0].delta.content or "" async for piece in stream])

    assert asyncio.run(ask()) == ANSWER


def test_the_openai_client_lists_the_models(gateway):
    assert tuple(model.id for model in client(gateway).models.list()) == RELEASE.names
    assert client(gateway).models.retrieve("khmer").id == "khmer"


def test_a_record_holds_what_was_asked_and_answered(gateway):
    system = {"role": "system", "content": "ឆ្លើយជាភាសាខ្មែរ"}
    list(client(gateway).chat.completions.create(**chat(messages=[system, *QUESTION], stream=True, temperature=0.5)))
    record = gateway.record("completed")
    assert record["key_id"] == "owner"
    assert record["model"] == "khmer" and record["release"] == RELEASE.digest
    assert record["parameters"] == {"temperature": 0.5, "stream": True}
    assert record["system_prompt"] == system["content"]
    assert record["user_input"] == QUESTION[0]["content"]
    assert record["output"] == ANSWER
    assert record["usage"] == USAGE and record["finish_reason"] == "stop"
    assert 0 < record["seconds_to_first_token"] <= record["seconds"]
    (file,) = (gateway.home / "audit").glob("????-??-??/*.json")
    assert file.name == f"chat_completions_{record['id']}_{file.stem.rpartition('_')[2]}.json"
    assert file.parent.name == record["time"][:10]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "Invalid JSON"),
        (b"[]", 400, "object"),
        (b'{"model": "khmer", "messages": [{"role": "user", "content": "\xff"}]}', 400, "invalid unicode"),
        (b'{"model": "khmer", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, "Invalid JSON"),
        (b'{"model": "khmer", "temperature": NaN, "messages": []}', 400, "temperature"),
        (b'{"a":' * 5000, 400, "Invalid JSON"),
        (chat(messages=[]), 400, "messages"),
        (chat(messages=[{"role": "wizard", "content": "x"}]), 400, "messages.0: Input tag 'wizard'"),
        (chat(messages=[{"role": "user", "content": None}]), 400, "messages.0.user.content"),
        (chat(tools=[{"type": "function"}]), 400, "tools"),
        (chat(max_tokens="5"), 400, "max_tokens"),
        (chat(max_tokens=10**30), 400, "max_tokens"),
        (chat(temperature=-1), 400, "temperature"),
        (chat(n=1000), 400, "n:"),
        (chat(stop=[""]), 400, "stop"),
        (chat(chat_template="{{ 1/0 }}"), 400, "chat_template"),
        (chat(model="../khmer"), 404, "served are khmer, khmer-aaaaaaaaaaaa"),
        (chat(messages=[{"role": "user", "content": "ក" * 10_000}]), 400, "reads 64 tokens"),
        (chat(messages=[{"role": "user", "content": "ក" * 5_000_000}]), 413, "1,048,576 bytes"),
    ],
)
def test_what_an_engine_could_not_answer_never_reaches_it(gateway, body, status, message):
    response = post(gateway, body, content=body if isinstance(body, bytes) else None)
    assert response.status_code == status
    assert message in error_of(response)["message"]
    assert not gateway.engines[0].asked


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(["model", "messages", "n", "stop", "stream", "top_p", "seed", "stream_options", "logprobs"])


@given(fields=st.dictionaries(NAMES, JSON))
@settings(max_examples=50)
def test_no_body_makes_the_gateway_fail(gateway, fields):
    assert post(gateway, chat(**fields)).status_code < 500


def test_what_the_engine_refuses_is_passed_on(gateway):
    gateway.engines[0].mood = "refusing"
    with pytest.raises(openai.BadRequestError, match="too many tokens"):
        client(gateway).chat.completions.create(**chat(stream=True))
    assert gateway.record("refused")["error"]


def test_a_text_of_any_length_is_tokenized_and_what_the_model_cannot_do_is_refused(gateway):
    response = post(gateway, {"model": "khmer", "prompt": "ab" * 5000}, path="/tokenize")
    assert len(response.json()["tokens"]) == 10_000
    response = post(gateway, {"model": "khmer", "input": "ab"}, path="/v1/embeddings")
    assert response.status_code == 404 and "serving.embedder" in error_of(response)["message"]


def test_unknown_paths_and_methods_have_openai_s_shape(gateway):
    for path in ("/nothing", "/v1/chat/completions", "/audit/2026-01-01"):
        response = httpx.get(gateway.address + path, trust_env=False)
        assert response.status_code in (404, 405)
        assert error_of(response)["message"]


def test_without_a_valid_key_nothing_is_answered(gateway):
    key, text = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    named = chat(model=RELEASE.names[1])
    assert post(gateway, named, key=text).status_code == 200
    KeyFile(gateway.folder).revoke(key.id)
    for wrong in (text, "khmer-00000000-x", f"khmer-owner-{gateway.key}", "ស", "x" * 5000):
        response = post(gateway, named, key=wrong)
        assert response.status_code == 401
        assert error_of(response)["type"] == "authentication_error"


def test_a_tier_bounds_requests_and_models(gateway):
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    response = post(gateway, chat(), key=key)
    assert response.status_code == 403 and "khmer" in error_of(response)["message"]
    named = chat(model=RELEASE.names[1])
    assert [post(gateway, named, key=key).status_code for _ in range(3)] == [200, 200, 429]
    with pytest.raises(openai.RateLimitError) as limited:
        client(gateway, key).chat.completions.create(**named)
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60


def test_a_tier_bounds_answers_at_a_time(gateway):
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    gateway.engines[0].mood = "slow"
    named = chat(model=RELEASE.names[1], stream=True)
    with client(gateway, key).chat.completions.create(**named) as stream:
        next(iter(stream))
        response = post(gateway, named, key=key)
        assert response.status_code == 429 and "at a time" in error_of(response)["message"]


def test_the_tokens_of_a_month_are_bounded_and_what_is_charged_for_is_told_by_day(gateway):
    keys = KeyFile(gateway.folder)
    key, text = keys.create("ដារ៉ា", "small", monthly_tokens=2 * USAGE["total_tokens"])
    named = chat(model=RELEASE.names[1])
    assert post(gateway, named, key=text).status_code == 200
    assert post(gateway, chat(model=RELEASE.names[1], stream=True), key=text).status_code == 200
    response = post(gateway, named, key=text)
    assert (response.status_code, error_of(response)["code"]) == (429, "insufficient_quota")
    assert int(response.headers["retry-after"]) <= 31 * 24 * 3600
    ((_, _, requests, read, written),) = KeyUsage(gateway.folder).days(1, key.id)
    assert (requests, read, written) == (2, 2 * USAGE["prompt_tokens"], 2 * USAGE["completion_tokens"])
    keys.change(key.id, tier="large", monthly_tokens=None)
    assert post(gateway, named, key=text).status_code == 200
    keys.change(key.id, expires=datetime.now(UTC))
    response = post(gateway, named, key=text)
    assert response.status_code == 401 and "has expired on" in error_of(response)["message"]


def test_a_schema_of_the_answer_is_charged_for(tmp_path):
    with front(tmp_path, tiers={"small": {"schema_bytes": 3000}}) as gateway:
        key, text = KeyFile(gateway.folder).create("ដារ៉ា", "small")
        schema = {"type": "object", "description": "x" * 2962}
        wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        assert post(gateway, chat(response_format=wanted), key=text).status_code == 200
        assert gateway.engines[0].asked[0]["response_format"] == wanted
        ((_, _, _, read, _),) = KeyUsage(gateway.folder).days(1, key.id)
        assert read == USAGE["prompt_tokens"] + 1000
        schema["description"] += "x" * 100
        assert error_of(post(gateway, chat(response_format=wanted), key=text))["code"] == "schema_too_large"


def test_what_the_engine_refuses_after_it_has_answered_is_a_refusal(gateway):
    gateway.engines[0].mood = "late"
    with pytest.raises(openai.BadRequestError, match="no such token"):
        client(gateway).chat.completions.create(**chat(stream=True))
    assert gateway.record("refused")["output"] is None
    assert len(gateway.engines[0].asked) == 1


def test_tools_are_refused_where_the_model_does_not_read_them(gateway):
    tool = {"type": "function", "function": {"name": "weather"}}
    for fields in ({"tools": [tool]}, {"messages": [*QUESTION, {"role": "tool", "tool_call_id": "1", "content": "a"}]}):
        response = post(gateway, chat(**fields))
        assert response.status_code == 400 and "chat template has no place" in error_of(response)["message"]
    assert post(gateway, chat(tools=[tool], tool_choice="none")).status_code == 200
    assert gateway.engines[0].asked[-1].keys() == {"model", "messages"}


def test_a_client_that_leaves_is_recorded_and_the_engine_stops(gateway):
    gateway.engines[0].mood = "slow"
    with client(gateway).chat.completions.create(**chat(stream=True)) as stream:
        assert next(iter(stream)).choices[0].delta.content == WORDS[0]
    assert gateway.record("cancelled")["output"] == WORDS[0]
    assert gateway.engines[0].gone.wait(5)


@pytest.mark.parametrize("mood", ["lingering", "dropping"])
def test_an_answer_is_completed_when_the_user_has_its_end_mark(gateway, mood):
    gateway.engines[0].mood = mood
    with client(gateway).chat.completions.create(**chat(stream=True)) as stream:  # the client leaves at the mark
        assert "".join(piece.choices[0].delta.content for piece in stream) == "".join(WORDS)
    assert gateway.record("completed")["output"] == "".join(WORDS)
    figures = httpx.get(f"{gateway.address}/metrics", trust_env=False).text
    assert 'status="200"' in figures and 'status="499"' not in figures and 'status="502"' not in figures


@pytest.mark.parametrize("mood", ["dying", "erring", "aborting"])
def test_an_answer_that_breaks_off_ends_with_an_error_and_is_a_failure(gateway, mood):
    gateway.engines[0].mood = mood
    said = []
    with pytest.raises(openai.APIError, match="broke off"):
        for piece in client(gateway).chat.completions.create(**chat(stream=True)):
            said.append(piece.choices[0].delta.content)
    assert said == list(WORDS[: len(said)]) and said
    record = gateway.record("failed")
    assert record["output"] == "".join(said)
    assert record["usage"]["total_tokens"] == 7 + len(said)  # what was read and written until then
    figures = httpx.get(f"{gateway.address}/metrics", trust_env=False).text
    assert 'khmer_requests_total{endpoint="/v1/chat/completions",status="502"' in figures
    assert 'khmer_answers_total{adapter="",model="khmer-aaaaaaaaaaaa",outcome="failed"' in figures
    assert 'outcome="completed"' not in figures


@pytest.mark.parametrize("mood", ["slow", "silent"])
def test_an_answer_that_takes_too_long_is_ended(tmp_path, mood):
    with front(tmp_path, request_seconds=0.2) as gateway:
        gateway.engines[0].mood = mood
        assert post(gateway, chat()).status_code == 504
        assert gateway.record("failed")["output"] is None


@pytest.mark.parametrize("mood", ["broken", "locked", "stillborn", "starting", "aborting"])
@pytest.mark.parametrize("engines", [1, 2])
def test_a_request_that_has_got_nothing_is_tried_again_on_another_engine_if_there_is_one(tmp_path, mood, engines):
    with front(tmp_path, engines=engines, dead=1) as gateway:
        ways = {"stillborn": [True], "aborting": [False]}  # a stream that says so at its end has sent something
        for stream in ways.get(mood, [False, True]):
            gateway.engines[0].moods = [mood]
            response = post(gateway, chat(stream=stream))
            assert response.status_code == 200 and "error" not in response.text
        assert {record["outcome"] for record in gateway.records()} == {"completed"}
        assert {record["output"] for record in gateway.records()} == {ANSWER}


def test_an_engine_that_fails_one_request_goes_on_with_the_others_unless_it_is_not_well(tmp_path, caplog):
    with front(tmp_path, engines=1, wait_seconds=0.5) as gateway:
        (engine,) = gateway.engines
        engine.moods = ["broken"] * 2
        assert [post(gateway, chat()).status_code for _ in range(2)] == [502, 200]
        assert "not well" not in caplog.text
        engine.moods, engine.healthy = ["broken"] * 2, False
        assert [post(gateway, chat()).status_code for _ in range(2)] == [503, 503]
        assert len(engine.asked) == 4  # while it is not well, nobody asks it
        assert caplog.text.count("not well") == 1
        ServerState.read(gateway.folder).model_copy(update={"gateway": {}}).write(gateway.folder)
        threading.Timer(0.5, lambda: setattr(engine, "healthy", True)).start()
        engine.moods.clear()
        assert post(gateway, chat()).status_code == 200


def test_a_request_that_breaks_engines_is_given_up(tmp_path):
    with front(tmp_path, engines=3) as gateway:
        for engine in gateway.engines:
            engine.mood = "broken"
        assert post(gateway, chat()).status_code == 502
        assert sum(len(engine.asked) for engine in gateway.engines) == 2


def test_the_engine_with_the_least_to_do_is_asked(tmp_path):
    with front(tmp_path, engines=2) as gateway:
        gateway.engines[0].mood = gateway.engines[1].mood = "slow"
        streams = [client(gateway).chat.completions.create(**chat(stream=True)) for _ in range(4)]
        assert [len(engine.asked) for engine in gateway.engines] == [2, 2]
        running = httpx.get(f"{gateway.address}/health", trust_env=False).json()["running"]
        assert running == {str(port): 2 for port in gateway.ports}
        for stream in streams:
            stream.close()


@pytest.mark.parametrize("kind", ["none", "dead", "starting"])
def test_without_an_engine_requests_wait_for_one_and_are_then_refused(tmp_path, kind, caplog):
    with front(tmp_path, engines=1, wait_seconds=2, max_requests=3) as gateway:
        state = ServerState.read(gateway.folder)
        (engine,) = gateway.engines
        engine.mood, engine.healthy = "starting", False
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = closed.getsockname()[1]
        ports = {"none": (), "dead": (dead,), "starting": tuple(gateway.ports)}[kind]
        waiting = state.model_copy(update={"ports": ports})
        waiting.write(gateway.folder)
        with ThreadPoolExecutor(4) as users:
            responses = list(users.map(lambda _: post(gateway, chat()), range(4)))
        messages = sorted(error_of(response)["message"] for response in responses)
        assert [message.partition(" at the moment")[0] for message in messages] == [
            *["no engine runs"] * 3,
            "too many requests",
        ]
        assert all(response.status_code == 503 and response.headers["retry-after"] for response in responses)
        assert len([line for line in caplog.messages if '"engine"' in line]) <= 1  # not one a request or look
        waiting.model_copy(update={"gateway": {"wait_seconds": 30}}).write(gateway.folder)
        caplog.clear()

        def serve() -> None:
            engine.mood, engine.healthy = "well", True
            state.write(gateway.folder)

        threading.Timer(0.3, serve).start()
        assert post(gateway, chat()).status_code == 200


def test_a_deployment_switches_new_requests_while_running_ones_end_where_they_began(tmp_path):
    with front(tmp_path, engines=2) as gateway:
        state = ServerState.read(gateway.folder)
        state.model_copy(update={"ports": (gateway.ports[0],)}).write(gateway.folder)
        gateway.engines[0].mood = "slow"
        with client(gateway).chat.completions.create(**chat(stream=True)) as stream:
            assert next(iter(stream)).model == RELEASE.names[1]
            after = ModelVersion(digest="b" * 16, max_model_length=64)
            ServerState(release=after, ports=(gateway.ports[1],)).write(gateway.folder)
            response = post(gateway, chat())
            assert response.headers["x-khmer-release"] == after.digest
            assert response.json()["model"] == after.names[1]
        assert gateway.record("cancelled")["release"] == RELEASE.digest


def test_an_adapter_is_chosen_by_name_until_it_is_retired(gateway):
    state = ServerState.read(gateway.folder)
    release = RELEASE.model_copy(update={"base": "b" * 16, "engine": {"enable_lora": True}})
    fits = AdapterVersion(name="numbers", digest="c" * 16, base="b" * 16)
    other = AdapterVersion(name="poems", digest="d" * 16, base="of another model")
    state.model_copy(update={"release": release, "adapters": (fits, other)}).write(gateway.folder)
    listed = {model.id: model for model in client(gateway).models.list()}
    assert list(listed) == ["khmer", "khmer-aaaaaaaaaaaa", "khmer-numbers", "khmer-numbers-cccccccccccc"]
    assert (listed["khmer-numbers"].root, listed["khmer-numbers"].parent) == (fits.digest, release.digest)
    for name in fits.names:
        response = post(gateway, chat(model=name))
        assert response.json()["model"] == gateway.engines[0].asked[-1]["model"] == "khmer-numbers-cccccccccccc"
        assert response.headers["x-khmer-adapter"] == fits.digest
    assert "x-khmer-adapter" not in post(gateway, chat()).headers
    assert [record["adapter"] for record in gateway.records()].count(fits.digest) == 2
    assert post(gateway, chat(model="khmer-poems")).status_code == 404
    state.model_copy(update={"release": release}).write(gateway.folder)
    assert "khmer-numbers" in error_of(post(gateway, chat(model="khmer-numbers")))["message"]


@pytest.mark.parametrize("mood", ["silent", "slow"])
@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_before_the_end_pays_for_what_was_done(tmp_path, mood, stream):
    with front(tmp_path, tiers={"small": {"tokens_a_minute": 1000}}) as gateway:
        _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
        gateway.engines[0].mood = mood
        headers = {"Authorization": f"Bearer {key}"}
        body = chat(stream=stream, messages=[{"role": "user", "content": "ភាសាខ្មែរ " * 100}])
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{gateway.address}/v1/chat/completions", json=body, headers=headers, timeout=1, trust_env=False)
        record = gateway.record("cancelled")
        gateway.engines[0].mood = "well"
        left = int(post(gateway, chat(), key=key).headers["x-ratelimit-remaining-tokens"])
        if stream and mood == "slow":  # the engine has told
            assert record["usage"] == {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
            assert 980 < left <= 1000
        else:
            assert record["usage"] is None
            assert left < 750


def test_a_reader_that_stalls_is_dropped_and_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "stall_seconds", 1.0)
    with front(tmp_path, tiers={"small": {"streams": 1, "tokens_a_minute": 1_000_000}}) as gateway:
        _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
        gateway.engines[0].mood = "flooding"
        with socket.socket() as stalling:
            stalling.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalling.connect(("127.0.0.1", gateway.port))
            body = json.dumps(chat(stream=True)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}"
            stalling.sendall(f"{head}\r\n\r\n".encode() + body)
            assert "took nothing" in gateway.record("cancelled")["error"]
            gateway.engines[0].mood = "well"
            assert post(gateway, chat(), key=key).status_code == 200  # its only answer at a time
            with pytest.raises(ConnectionResetError):
                while stalling.recv(65_536):
                    pass
        figures = httpx.get(f"{gateway.address}/metrics", trust_env=False).text
        assert "khmer_stalled_readers_total 1.0" in figures


def test_a_slow_sender_is_told_and_then_dropped(tmp_path):
    with front(tmp_path, body_seconds=0.2) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as slow:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer {gateway.key}\r\n"
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert b" 408 " in slow.recv(1000)
        with socket.create_connection(("127.0.0.1", gateway.port)) as silent:
            silent.settimeout(10)
            assert silent.recv(1000) == b""


def test_a_flood_of_headers_is_refused(gateway):
    for flood in (b"a: " + b"x" * 500_000, b"".join(b"a%d: x\r\n" % number for number in range(9000)) + b"\r\n"):
        with socket.create_connection(("127.0.0.1", gateway.port)) as flooding:
            flooding.sendall(b"GET /health HTTP/1.1\r\n" + flood)
            assert flooding.recv(20).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_the_log_tells_what_happened_but_neither_prompts_nor_keys(gateway, caplog):
    with caplog.at_level("INFO", logger="khmer.gateway"):
        post(gateway, chat())
        deadline = time.monotonic() + 30  # it is told after the answer
        while not any(record.name == "khmer.gateway" for record in caplog.records):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "khmer.gateway"]
    assert line["status"] == 200 and line["tokens"] == 10
    assert QUESTION[0]["content"] not in caplog.text and gateway.key not in caplog.text
