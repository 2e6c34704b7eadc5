"""The OpenAI client works unchanged, bad requests never reach an engine, and nothing answered is unrecorded."""

import asyncio
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from khmer_assets.server.keys import KeyFile
from khmer_assets.server.state import AdapterVersion, ModelVersion, ServerState
from tests.server.gateways import RELEASE, USAGE, WORDS, front

QUESTION = [{"role": "user", "content": "តើរាជធានីឈ្មោះអ្វី?"}]
ANSWER = "".join(WORDS)
TIERS = {"small": {"requests_a_minute": 2, "tokens_a_minute": 1000, "streams": 1, "models": ["khmer-*"]}}


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
        (chat(messages=[{"role": "wizard", "content": "x"}]), 400, "messages.0.role"),
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
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
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
    assert response.status_code == 404 and "does not answer /v1/embeddings" in error_of(response)["message"]


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


def test_a_client_that_leaves_is_recorded_and_the_engine_stops(gateway):
    gateway.engines[0].mood = "slow"
    with client(gateway).chat.completions.create(**chat(stream=True)) as stream:
        assert next(iter(stream)).choices[0].delta.content == WORDS[0]
    assert gateway.record("cancelled")["output"] == WORDS[0]
    assert gateway.engines[0].gone.wait(5)


def test_an_answer_that_breaks_off_ends_with_an_error_and_is_recorded(gateway):
    gateway.engines[0].mood = "dying"
    said = []
    with pytest.raises(openai.APIError, match="broke off"):
        for piece in client(gateway).chat.completions.create(**chat(stream=True)):
            said.append(piece.choices[0].delta.content)
    assert said == [WORDS[0]]
    assert gateway.record("failed")["output"] == WORDS[0]


def test_an_answer_that_takes_too_long_is_ended(tmp_path):
    with front(tmp_path, request_seconds=0.2) as gateway:
        gateway.engines[0].mood = "slow"
        assert post(gateway, chat()).status_code == 504


@pytest.mark.parametrize("mood", ["broken", "locked"])
def test_a_request_that_has_got_nothing_is_given_to_another_engine(tmp_path, mood):
    with front(tmp_path, engines=2, dead=1) as gateway:
        gateway.engines[0].mood = mood
        for stream in (False, True):
            assert post(gateway, chat(stream=stream)).status_code == 200
        assert {record["outcome"] for record in gateway.records()} == {"completed"}


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


def test_without_an_engine_a_request_waits_for_one_and_then_is_refused(tmp_path):
    with front(tmp_path, engines=1, wait_seconds=0.3) as gateway:
        state = ServerState.read(gateway.folder)
        state.model_copy(update={"ports": ()}).write(gateway.folder)
        response = post(gateway, chat())
        assert response.status_code == 503 and response.headers["retry-after"]
        assert httpx.get(f"{gateway.address}/health", trust_env=False).status_code == 503
        state.model_copy(update={"ports": (), "gateway": {"wait_seconds": 30}}).write(gateway.folder)
        threading.Timer(0.3, lambda: state.write(gateway.folder)).start()
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
        time.sleep(0.05)
    (line,) = [json.loads(record.getMessage()) for record in caplog.records if record.name == "khmer.gateway"]
    assert line["status"] == 200 and line["tokens"] == 10
    assert QUESTION[0]["content"] not in caplog.text and gateway.key not in caplog.text
