"""`khmer-auto`: it is told who answers and why, one answer more is asked for at most, and no promise is broken."""

import json
import math
import time

import httpx
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.key_usage import KeyUsage
from khmer_assets.server.keys import KeyFile
from khmer_assets.server.state import RouterVersion, ServerState, StrongerModel
from tests.server.gateways import USAGE, WORDS, event, listening
from tests.server.routers import BASE, CAPITAL, NUMBER, NUMBERS, ROUTED, routed, serve

ANSWER = "".join(WORDS)
MODEL, ADAPTER = ROUTED.names[1], NUMBERS.names[1]
SURE = round(math.exp(-0.003 / math.sqrt(3)), 6)
TIERS = {"small": {"requests_a_minute": 2, "models": ["khmer", "khmer-auto"]}, "all": {}}


@pytest.fixture
def gateway(tmp_path):
    with routed(tmp_path, tiers=TIERS) as started:
        yield started


def ask(gateway, *turns, key=None, path="/v1/chat/completions", **fields) -> httpx.Response:
    """What is said by turns, user first."""
    roles = ["user", "assistant"] * len(turns)
    body = {"model": "khmer-auto", "messages": [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]}
    body = {**body, **fields}
    if path != "/v1/chat/completions":
        del body["messages"]
    headers = {"Authorization": f"Bearer {key or gateway.key}"}
    return httpx.post(gateway.address + path, json=body, headers=headers, timeout=20, trust_env=False)


def text_of(response) -> str:
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: {")]
    told = [json.loads(one) for one in events]
    assert not any(choice.get("logprobs") for one in told for choice in one["choices"])
    return "".join(choice["delta"].get("content") or "" for one in told for choice in one["choices"])


def asked(gateway) -> list[dict]:
    return [body for engine in gateway.engines for body in engine.asked]


def route(response) -> tuple[str, str]:
    return response.headers["x-khmer-route"], response.headers["x-khmer-route-reason"]


def newest(gateway, count) -> dict:
    """The last of so many records."""
    for _ in range(3000):
        if len(found := gateway.records()) == count:
            return max(found, key=lambda record: record["time"])
        time.sleep(0.01)
    raise AssertionError(f"{len(found)} records, expected {count}")


def test_a_stream_is_the_adapters_where_the_question_is_in_its_domain(gateway):
    response = ask(gateway, NUMBER, stream=True)
    assert text_of(response) == ANSWER and route(response) == ("khmer-numbers", "question")
    assert response.headers["x-khmer-adapter"] == NUMBERS.digest
    (body,) = asked(gateway)
    assert body["model"] == ADAPTER and "logprobs" not in body
    record = gateway.record("completed")
    assert (record["model"], record["route"], record["route_reason"]) == ("khmer-auto", "khmer-numbers", "question")
    assert (record["confidence"], record["dissatisfied"], record["dissatisfied_with"]) == (None, False, None)
    assert record["adapter"] == NUMBERS.digest and record["parameters"] == {"stream": True}


def test_any_other_stream_is_the_models_and_its_record_tells_how_sure_it_was(gateway):
    response = ask(gateway, CAPITAL, stream=True)
    assert text_of(response) == ANSWER and route(response) == ("khmer", "question")
    (body,) = asked(gateway)
    assert body["model"] == MODEL and body["logprobs"] is True
    record = gateway.record("completed")
    assert record["confidence"] == SURE and record["route"] == "khmer" and record["output"] == ANSWER
    assert "logprobs" not in json.dumps(record)


def test_a_whole_answer_of_which_the_model_is_sure_is_the_models(gateway):
    response = ask(gateway, NUMBER)
    assert response.json()["choices"][0]["message"]["content"] == ANSWER
    assert route(response) == ("khmer", "sure") and response.headers["x-khmer-confidence"] == str(SURE)
    assert response.json()["choices"][0]["logprobs"] is None and len(asked(gateway)) == 1


def test_one_of_which_it_is_not_sure_is_the_adapters_and_both_are_charged(gateway):
    for engine in gateway.engines:
        engine.logprob = -2.0
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "all")
    response = ask(gateway, NUMBER, key=key)
    assert route(response) == ("khmer-numbers", "unsure") and response.json()["model"] == ADAPTER
    assert [body["model"] for body in sorted(asked(gateway), key=lambda b: "logprobs" not in b)] == [MODEL, ADAPTER]
    record = gateway.record("completed")
    assert 0 < record["confidence"] < 0.8 and record["usage"] == USAGE
    used = KeyUsage(gateway.folder).month(record["key_id"])
    assert used == 2 * USAGE["total_tokens"]


def test_one_of_which_nobody_is_sure_stays_the_models(gateway):
    for engine in gateway.engines:
        engine.logprob = -2.0
    response = ask(gateway, CAPITAL)
    assert route(response) == ("khmer", "question") and len(asked(gateway)) == 1
    assert float(response.headers["x-khmer-confidence"]) < 0.8


@pytest.mark.parametrize("stream", [True, False])
def test_an_adapter_that_is_not_loaded_is_not_missed(gateway, stream):
    for engine in gateway.engines:
        engine.logprob = -2.0
    serve(gateway, adapters=())
    response = ask(gateway, NUMBER, stream=stream)
    assert response.status_code == 200 and route(response) == ("khmer", "not_loaded")


def test_nor_is_one_that_the_engines_have_just_forgotten(gateway):
    for engine in gateway.engines:
        engine.missing = {ADAPTER}
    response = ask(gateway, NUMBER, stream=True)
    assert text_of(response) == ANSWER and route(response) == ("khmer", "failed")
    assert "x-khmer-adapter" not in response.headers
    assert gateway.record("completed")["adapter"] is None


def test_a_key_is_not_sent_to_an_adapter_that_it_may_not_use(gateway):
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    assert route(ask(gateway, NUMBER, stream=True, key=key)) == ("khmer", "not_loaded")
    assert ask(gateway, NUMBER, stream=True, key=key).status_code == 200
    assert ask(gateway, NUMBER, stream=True, key=key).status_code == 429  # as often as anything else, and no more


def test_an_engine_that_breaks_before_the_first_word_is_not_noticed(gateway):
    for mood in ("broken", "starting", "stillborn"):
        for engine in gateway.engines:
            engine.asked.clear()
        gateway.engines[0].moods = gateway.engines[1].moods = []
        for question in (NUMBER, CAPITAL):
            gateway.engines[0].moods = [mood]
            response = ask(gateway, question, stream=True)
            assert text_of(response) == ANSWER, (mood, question)


def test_a_stream_that_breaks_off_says_so_and_a_user_who_leaves_is_recorded(gateway):
    for engine in gateway.engines:
        engine.mood = "dying"
    for question in (NUMBER, CAPITAL):
        assert '"error"' in ask(gateway, question, stream=True).text.split("\n\n")[-2]
    for engine in gateway.engines:
        engine.mood = "slow"
    body = {"model": "khmer-auto", "messages": [{"role": "user", "content": CAPITAL}], "stream": True}
    headers = {"Authorization": f"Bearer {gateway.key}"}
    with httpx.stream("POST", f"{gateway.address}/v1/chat/completions", json=body, headers=headers) as response:
        next(response.iter_bytes())
    record = gateway.record("cancelled")
    assert record["output"] == WORDS[0] and record["route"] == "khmer"


def test_who_asks_for_log_probabilities_gets_them(gateway):
    told = ask(gateway, CAPITAL, logprobs=True).json()["choices"][0]["logprobs"]
    assert [token["logprob"] for token in told["content"]] == [-0.001] * 3
    assert '"logprob":' in ask(gateway, CAPITAL, stream=True, logprobs=True).text
    plain = ask(gateway, CAPITAL, n=2, temperature=1, logprobs=True)
    assert plain.status_code == 200 and route(plain) == ("khmer", "question")


def test_the_openai_client_and_other_paths(gateway):
    http = openai.DefaultHttpxClient(trust_env=False)
    client = openai.OpenAI(base_url=f"{gateway.address}/v1", api_key=gateway.key, http_client=http, max_retries=0)
    assert "khmer-auto" in [model.id for model in client.models.list()]
    assert client.responses.create(model="khmer-auto", input=NUMBER).output_text == ANSWER
    with client.responses.stream(model="khmer-auto", input=CAPITAL) as events:
        assert events.get_final_response().output_text == ANSWER
    for engine in gateway.engines:
        engine.asked.clear()
    completion = ask(gateway, path="/v1/completions", prompt=NUMBER)
    assert completion.status_code == 200 and route(completion) == ("khmer", "no_chat")
    assert "logprobs" not in asked(gateway)[0]


def test_without_a_router_or_with_a_broken_one_only_the_name_is_gone(gateway):
    (kept_model(gateway.folder, "e" * 16)).mkdir()
    for router, told in ((RouterVersion(digest="e" * 16, base=BASE), "cannot be read"), (None, "set router")):
        state = ServerState.read(gateway.folder)
        state.model_copy(update={"router": router}).write(gateway.folder)
        refused = ask(gateway, NUMBER)
        assert refused.status_code == 404 and told in refused.json()["error"]["message"]
        assert "materialize" in refused.json()["error"]["message"]
        assert ask(gateway, NUMBER, model="khmer-numbers").status_code == 200
        headers = {"Authorization": f"Bearer {gateway.key}"}
        listed = httpx.get(f"{gateway.address}/v1/models", headers=headers, trust_env=False).json()["data"]
        assert "khmer-auto" not in [model["id"] for model in listed]
    serve(gateway)
    assert ask(gateway, NUMBER).status_code == 200


class Beyond:
    """Another server that speaks OpenAI's protocol, with \\r\\n where engines have \\n."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.status = 200
        self.broken = False
        self.instead: bytes | None = None  # of what it should say
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.answer, methods=["POST"])])

    async def answer(self, request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer beyond's key"
        self.asked.append(body := await request.json())
        if self.status != 200:
            return JSONResponse({"error": {"message": "busy"}}, self.status)
        if self.instead is not None:
            return Response(self.instead, media_type="application/json")
        if not body.get("stream"):
            message = {"role": "assistant", "content": "ភ្នំពេញ"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return JSONResponse({"id": "1", "model": "large", "choices": [choice], "usage": USAGE})
        pieces: list[dict] = [
            {"id": "1", "choices": [{"index": 0, "delta": {"content": text}}]} for text in ("ភ្នំ", "ពេញ")
        ]
        lines = [b": wait\n\n", *(event(one) for one in [*pieces, {"id": "1", "choices": [], "usage": USAGE}])]
        if self.broken:
            lines = lines[:2]
        else:
            lines.append(b"data: [DONE]\n\n")

        async def told():
            for line in lines:
                yield line.replace(b"\n", b"\r\n")

        return StreamingResponse(told(), media_type="text/event-stream")


@pytest.fixture
def beyond(gateway, monkeypatch):
    monkeypatch.setenv("BEYOND_KEY", "beyond's key")
    server = Beyond()
    with listening(server.app) as port:
        address = f"http://127.0.0.1:{port}/v1"
        stronger = StrongerModel(name="large", address=address, model="large-1", key_variable="BEYOND_KEY")
        serve(gateway, router=RouterVersion(digest="d" * 16, base=BASE, stronger=stronger))
        yield server


def test_who_is_not_satisfied_goes_on_to_the_adapter_and_the_pair_is_marked(gateway):
    ask(gateway, NUMBER)
    first = newest(gateway, 1)
    assert first["route"] == "khmer" and first["dissatisfied"] is False
    response = ask(gateway, NUMBER, ANSWER, "ខុសហើយ សូមឆ្លើយម្តងទៀត", stream=True)
    assert route(response) == ("khmer-numbers", "dissatisfied")
    second = newest(gateway, 2)
    assert second["dissatisfied"] is True and second["dissatisfied_with"] == first["id"]
    thanked = ask(gateway, NUMBER, ANSWER, "ខុសហើយ", ANSWER, "អរគុណ ត្រឹមត្រូវហើយ", stream=True)
    assert newest(gateway, 3)["dissatisfied"] is False and thanked.status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_and_then_to_the_stronger_model_which_learns_nothing_of_the_user(gateway, beyond, stream):
    ask(gateway, CAPITAL, stream=stream)
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "all")
    fields = {"user": "dara", "metadata": {"class": "7"}, "top_k": 5, "temperature": 0.5, "stream": stream}
    response = ask(gateway, CAPITAL, ANSWER, "No, that is wrong", key=key, **fields)
    assert route(response) == ("large", "dissatisfied")
    assert "x-khmer-release" not in response.headers
    text = text_of(response) if stream else response.json()["choices"][0]["message"]["content"]
    assert text == "ភ្នំពេញ"
    (body,) = beyond.asked
    assert body.keys() == {"model", "messages", "temperature", "stream"} | ({"stream_options"} if stream else set())
    assert body["model"] == "large-1" and len(asked(gateway)) == 1
    record = newest(gateway, 2)
    assert (record["route"], record["dissatisfied"], record["dissatisfied_with"]) == ("large", True, None)
    assert record["output"] == "ភ្នំពេញ" and record["usage"] == USAGE
    assert KeyUsage(gateway.folder).month(record["key_id"]) == USAGE["total_tokens"]


def test_the_model_answers_where_the_stronger_one_cannot(gateway, beyond, monkeypatch):
    beyond.status = 503
    turns = (CAPITAL, ANSWER, "ខុសហើយ")
    for stream in (True, False):
        response = ask(gateway, *turns, stream=stream)
        assert response.status_code == 200 and route(response) == ("khmer", "failed")
    monkeypatch.delenv("BEYOND_KEY")
    assert route(ask(gateway, *turns, stream=True)) == ("khmer", "failed")
    monkeypatch.setenv("BEYOND_KEY", "beyond's key")
    beyond.status, beyond.broken = 200, True
    cut = ask(gateway, *turns, stream=True).text.split("\n\n")
    assert '"content"' in cut[0] and "broke off" in cut[-2]
    assert newest(gateway, 4)["outcome"] == "failed"


@pytest.mark.parametrize(
    "instead",
    [
        b"<html>",
        b"[1]",
        b'{"error": {"message": "busy"}}',
        b'{"id": "1", "choices": "x"}',
        b'{"id": "1", "choices": [{"index": 0, "delta": {"content": 7}, "message": {"content": 7}}]}',
        b'{"id": "1", "choices": [], "usage": {"prompt_tokens": "many"}, "timings": 7}',
        b'{"id": "1", "choices": [], "usage": {"prompt_tokens": -5, "completion_tokens": 0, "total_tokens": 0}}',
    ],
)
def test_what_is_no_answer_of_the_stronger_model_reaches_nobody(gateway, beyond, instead):
    for stream in (True, False):
        beyond.instead = b"data: " + instead + b"\n\n" if stream else instead
        response = ask(gateway, CAPITAL, ANSWER, "ខុសហើយ", stream=stream)
        assert response.status_code == 200 and route(response) == ("khmer", "failed")
    assert newest(gateway, 2)["output"] == ANSWER


def test_a_conversation_goes_from_adapter_to_stronger_and_stays_there(gateway, beyond):
    turns = [NUMBER]
    for expected, said in (("khmer-numbers", "ខុសហើយ"), ("large", "ហើយលេខ ៦០ ជាអក្សរ?"), ("large", "នៅតែខុស")):
        response = ask(gateway, *turns, stream=True)
        assert route(response)[0] == expected
        turns += [text_of(response), said]
    assert route(ask(gateway, *turns, stream=True))[0] == "large"
