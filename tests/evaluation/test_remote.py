"""A model behind a server gives the picks and answers that it gives here; one that cannot score still answers."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from khmer_assets.evaluation import remote
from khmer_assets.evaluation.engines import TransformersEngine
from khmer_assets.evaluation.examination import Examination
from khmer_assets.evaluation.items import Item
from khmer_assets.evaluation.remote import RemoteExamination
from khmer_assets.evaluation.tasks import sib200
from khmer_assets.training import held_out
from khmer_assets.training.models import load_model
from resources.payload import Refusal
from tests.tiny_model import save_tiny_model

CONTEXT, NEW_TOKENS = 256, 8
QUESTIONS = ["តើមេឃពណ៌អ្វី?", "What is red?", "សូមរាប់ពីមួយដល់ដប់"]

Answered = tuple[int, Any]
Speaks = Callable[[str, dict[str, Any]], Answered]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The model in this process."""
    from transformers import AutoTokenizer

    folder = save_tiny_model(tmp_path_factory.mktemp("served") / "model", max_position_embeddings=CONTEXT)
    engine = TransformersEngine(load_model(folder).eval(), CONTEXT)
    return Examination(engine, AutoTokenizer.from_pretrained(folder), NEW_TOKENS)


def speaks(here: Examination) -> Speaks:
    """As vLLM: chats, prompts repeated with their log-probabilities, token ids."""
    import torch

    turn = threading.Lock()
    assert isinstance(here.engine, TransformersEngine)
    model = here.engine.model

    def answer(path: str, body: dict[str, Any]) -> Answered:
        with turn:
            if path == "/v1/models":
                return 200, {"data": [{"id": "khmer", "max_model_len": CONTEXT}]}
            if path == "/tokenize":
                return 200, {"tokens": here.tokenizer(body["prompt"])["input_ids"]}
            if path == "/v1/chat/completions":
                assert (body["temperature"], body["repetition_penalty"]) == (0, 1.0)
                (said,) = here.answers([body["messages"]])
                told = {"content": [{"logprob": said.mean_likelihood}] * said.tokens} if body["logprobs"] else None
                return 200, {"choices": [{"message": {"content": said.text}, "logprobs": told}]}
            ids = here.tokenizer(body["prompt"])["input_ids"]
            if len(ids) >= CONTEXT:
                return 400, {"error": {"message": "This model's maximum context length is 256 tokens"}}
            nats = held_out.token_nats(model, torch.tensor([ids]))[0].tolist()
            probabilities = {"token_logprobs": [None, *(-one for one in nats), -1.0]}
            return 200, {"choices": [{"text": "", "logprobs": probabilities}], "usage": {"prompt_tokens": len(ids)}}

    return answer


@contextmanager
def server(answer: Speaks) -> Iterator[str]:
    """Its model's address while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, told = answer(self.path, json.loads(self.rfile.read(length) or b"{}"))
            content = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}/v1#khmer"
    finally:
        running.shutdown()
        running.server_close()


def test_a_server_that_repeats_prompts_gives_the_picks_and_answers_of_the_model_here(here):
    items = [Item(str(n), f"Text: {text}\nTopic:", list(sib200.TOPICS[:3]), 0) for n, text in enumerate(QUESTIONS)]
    with server(speaks(here)) as address:
        there = RemoteExamination(address, NEW_TOKENS, 10 * CONTEXT)
        assert there.can_score and there.context_length == CONTEXT
        for ours, theirs in zip(here.picks(items)[0], there.picks(items)[0], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-3)
        assert [one.text for one in there.asked(QUESTIONS)] == [one.text for one in here.asked(QUESTIONS)]
        assert [one.mean_likelihood for one in there.asked(QUESTIONS)] == pytest.approx(
            [one.mean_likelihood for one in here.asked(QUESTIONS)]
        )


def test_an_item_that_does_not_fit_loses_its_beginning_and_is_counted(here):
    long = Item("1", "ត្រី " * 200 + "Answer:", ["A", "B"], 0)
    with server(speaks(here)) as address:
        (likelihoods,), cut = RemoteExamination(address, NEW_TOKENS, CONTEXT).picks([long])
    assert cut == 1 and all(-50 < one < 0 for one in likelihoods)


@pytest.mark.parametrize("lacking", ["/tokenize", "/v1/completions", "echo"])
def test_a_server_that_cannot_score_answers_all_the_same(here, lacking):
    whole = speaks(here)

    def answer(path: str, body: dict[str, Any]) -> Answered:
        if path == lacking:
            return 404, {"detail": "Not Found"}
        if path == "/v1/completions":  # as llama.cpp, which says on without the prompt
            return 200, {"choices": [{"text": "4", "logprobs": None}], "usage": {"prompt_tokens": 5}}
        return whole(path, body)

    with server(answer) as address:
        there = RemoteExamination(address, NEW_TOKENS, CONTEXT)
        assert not there.can_score
        assert [one.text for one in there.asked(QUESTIONS)] == [one.text for one in here.asked(QUESTIONS)]


def test_a_server_that_knows_openais_own_fields_alone_is_asked_with_those(here):
    def answer(path: str, body: dict[str, Any]) -> Answered:
        if "repetition_penalty" in body or "logprobs" in body:
            return 400, {"error": {"message": "Unrecognized request argument"}}
        told = {"choices": [{"message": {"content": "ត្រី"}}]}
        return (200, told) if path == "/v1/chat/completions" else (404, {})

    with server(lambda path, body: (200, {"data": []}) if path == "/v1/models" else answer(path, body)) as address:
        (said,) = RemoteExamination(address, NEW_TOKENS, CONTEXT).asked(["?"])
    assert (said.text, said.tokens) == ("ត្រី", 0)  # without a likelihood, which no calibration is made of


def test_what_its_guard_keeps_back_or_what_is_too_long_ends_no_evaluation(here):
    whole = speaks(here)

    def answer(path: str, body: dict[str, Any]) -> Answered:
        if "ទេ" in str(body.get("messages")):
            return 400, {"error": {"message": "content filter"}}
        if "ត្រី" in str(body.get("messages")):
            return 400, {"error": {"code": "context_length_exceeded"}}
        return whole(path, body)

    with server(answer) as address:
        kept, long, said = RemoteExamination(address, NEW_TOKENS, CONTEXT).asked(["ទេ", "ត្រី", QUESTIONS[0]])
    assert [(one.text, one.too_long) for one in (kept, long)] == [("", False), ("", True)]
    assert said.text == here.asked([QUESTIONS[0]])[0].text


@pytest.mark.parametrize(
    ("status", "told", "reason"),
    [
        (401, {"error": {"message": "bad key sk-123"}}, "refuses the key; put the server's own into OPENAI_API_KEY"),
        (200, {"data": [{"id": "other"}]}, "serves other, expected khmer"),
        (200, b"<html>", "answers with what is none of OpenAI's|refuses"),
        (200, {"choices": "none"}, "answers with what is none of OpenAI's"),
    ],
)
def test_a_server_that_cannot_be_asked_is_refused_in_one_line(status, told, reason):
    with server(lambda path, body: (status, told)) as address, pytest.raises(Refusal, match=reason) as refused:
        RemoteExamination(address, NEW_TOKENS, CONTEXT).asked(["?"])
    assert "sk-123" not in str(refused.value) and "\n" not in str(refused.value)


def test_an_address_without_a_name_and_one_where_nobody_listens_are_refused(monkeypatch):
    monkeypatch.setattr(remote, "TRIES", 1)
    with pytest.raises(Refusal, match="expected the address of a server and its model's name"):
        RemoteExamination("http://127.0.0.1:9/v1", 1, 1)
    with pytest.raises(Refusal, match=r"gives no answer \(ConnectError.*start the server"):
        RemoteExamination("http://127.0.0.1:9/v1#khmer", 1, 1)


def test_a_busy_server_is_asked_again(here, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    whole, seen = speaks(here), []

    def answer(path: str, body: dict[str, Any]) -> Answered:
        seen.append(path)
        return (503, {}) if len(seen) % 2 else whole(path, body)

    with server(answer) as address:
        assert RemoteExamination(address, NEW_TOKENS, CONTEXT).can_score
