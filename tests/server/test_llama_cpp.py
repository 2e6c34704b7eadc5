"""A GGUF file is served by llama.cpp behind the gateway as any release is, and what llama.cpp cannot do is refused."""

import json
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from khmer_assets.compression import gguf
from khmer_assets.compression.gguf import Quantization
from khmer_assets.server import llama_cpp
from khmer_assets.server.client import ask
from khmer_assets.server.engines import Engine
from khmer_assets.server.keys import engine_key
from khmer_assets.server.paths import BODIES
from khmer_assets.server.refusals import Refused
from khmer_assets.server.state import ModelServerError, ServerState
from resources.model_server import ModelServer
from tests.ports import free_port
from tests.resources.test_model_server import questions_until, spoil
from tests.tiny_model import KHMER_TEXTS, WEATHER, save_tiny_model

CHAT: list[Any] = [{"role": "user", "content": "តើត្រីនៅផ្សារថ្លៃទេ?"}]
CONTEXT = 256


def gguf_of(model: Path, quantization: Quantization | None = "Q4_K_M") -> Path:
    """A release's folder with the model as a GGUF file, in float16 without a quantization."""
    folder = model.with_name(f"{model.name}-gguf")
    folder.mkdir()
    if quantization is None:
        gguf.write_float16(model, folder / "float16.gguf")
    else:
        gguf.write_float16(model, model / "float16.gguf")
        gguf.quantize(model / "float16.gguf", folder / f"{quantization}.gguf", quantization, {})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "a")


@pytest.fixture(scope="module")
def released(model) -> Path:
    return gguf_of(model)


@pytest.fixture(scope="module")
def server(released, tmp_path_factory):
    server = ModelServer(home=str(tmp_path_factory.mktemp("home")), port=free_port())
    server.deploy(released, "a" * 16, CONTEXT)
    yield server
    server.stop()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key=server.api_key(), max_retries=0) as client:
        yield client


def records(server: ModelServer) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(Path(server.home).glob("audit/????-??-??/*.json"))]


def engine(server: ModelServer) -> Engine:
    folder = Path(server.home) / "server"
    (port,) = ServerState.read(folder).ports
    return Engine(folder, port)


def test_openais_client_gets_khmer_whole_and_streamed_and_both_are_recorded(server, client):
    settings: dict[str, Any] = {"model": "khmer", "messages": CHAT, "max_tokens": 24, "temperature": 0}
    settings |= {"presence_penalty": 2}  # else a random model says one token again and again
    whole = client.chat.completions.create(**settings)
    pieces = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    text = whole.choices[0].message.content or ""
    assert re.search("[ក-៿]", text)
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text.startswith(streamed), "a character that the limit cuts is not streamed"
    assert len(streamed) > 20
    assert len(pieces) > 3
    assert whole.model == pieces[0].model == "khmer-aaaaaaaaaaaa"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 24
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.total_tokens == whole.usage.total_tokens
    deadline = time.monotonic() + 10  # the second is in its place a moment after the user has seen the end
    while len(kept := [r for r in records(server) if r["user_input"] == CHAT[0]["content"]]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert sorted(record["output"] for record in kept) == sorted([text, streamed])
    assert {record["outcome"] for record in kept} == {"completed"}
    assert {record["usage"]["total_tokens"] for record in kept} == {whole.usage.total_tokens}


def test_it_reads_khmer_as_transformers_does(server, client, model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    for text in KHMER_TEXTS:
        body = {"model": "khmer", "prompt": text}
        headers = {"Authorization": f"Bearer {server.api_key()}"}
        response = httpx.post(f"{server.address}/tokenize", json=body, headers=headers)
        assert response.json()["tokens"] == tokenizer(text)["input_ids"]
    prompt = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    answer = client.chat.completions.create(model="khmer", messages=CHAT, max_tokens=1)
    assert answer.usage.prompt_tokens == len(prompt)


def test_a_prompt_longer_than_the_context_is_refused_and_one_that_just_fits_is_not(client):
    def complete(tokens: int, stream: bool) -> Any:
        return client.completions.create(model="khmer", prompt="1" * tokens, max_tokens=4, stream=stream)

    assert complete(CONTEXT - 1, stream=False).usage.prompt_tokens == CONTEXT - 1
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"the prompt has 256 tokens; the model reads 256") as refused:
            complete(CONTEXT, stream)
        assert refused.value.code == "context_length_exceeded"


def test_log_probabilities_are_as_many_as_were_asked_for(server, client):
    """Of tokens that are characters: llama.cpp tells none of those that end within one, as a random model's do."""
    headers = {"Authorization": f"Bearer {server.api_key()}"}
    told = httpx.post(f"{server.address}/tokenize", json={"model": "khmer", "prompt": "1"}, headers=headers).json()
    ones = {str(told["tokens"][-1]): 100}

    def tops(**settings: Any) -> set[int]:
        settings |= {"max_tokens": 4, "logprobs": True, "logit_bias": ones}
        answer = client.chat.completions.create(model="khmer", messages=CHAT, **settings)
        assert answer.choices[0].message.content == "1111"
        return {len(token.top_logprobs) for token in answer.choices[0].logprobs.content}

    assert tops(top_logprobs=3) == {3}
    assert tops() == {1}


def test_penalties_and_seeds_change_the_answer(client):
    def answer(**settings: Any) -> str:
        answer = client.chat.completions.create(model="khmer", messages=CHAT, max_tokens=24, **settings)
        return answer.choices[0].message.content or ""

    plain = answer(temperature=0)
    for penalty in ({"extra_body": {"repetition_penalty": 2.0}}, {"presence_penalty": 2.0}):
        assert answer(temperature=0, **penalty) != plain
    largest = 2**63 - 1  # its lower 32 bits are llama.cpp's sign for any seed
    assert answer(seed=largest) == answer(seed=largest) != answer(seed=1)


def test_twenty_users_at_once_get_whole_answers(client):
    def stream(number: int) -> str:
        settings: dict[str, Any] = {"max_tokens": 64, "seed": number, "extra_body": {"ignore_eos": True}}
        pieces = list(client.chat.completions.create(model="khmer", messages=CHAT, stream=True, **settings))
        return str(pieces[-1].choices[0].finish_reason)

    with ThreadPoolExecutor(20) as users:
        assert list(users.map(stream, range(40))) == ["length"] * 40


def test_the_engines_key_is_not_in_the_list_of_processes(server):
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert llama_cpp.__name__ in shown
    assert engine_key(Path(server.home) / "server") not in shown


def test_a_killed_engine_comes_back_and_the_question_waits_for_it(server):
    before = ask("សួស្តី", server.base_url, server.api_key(), max_tokens=8)
    process = engine(server).process._process()
    assert process is not None
    process.kill()
    assert ask("សួស្តី", server.base_url, server.api_key(), max_tokens=8) == before


def test_broken_files_and_weights_are_turned_away_and_a_better_release_can_be_taken_back(server, tmp_path):
    cut = gguf_of(save_tiny_model(tmp_path / "cut"))
    file = next(cut.iterdir())
    file.write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(ModelServerError, match=r"not within the file bounds(.|\n)*khmer-aaaaaaaaaaaa, is served"):
        server.deploy(cut, "b" * 16, CONTEXT)
    spoiled = save_tiny_model(tmp_path / "spoiled")
    spoil(spoiled / "model.safetensors")
    with pytest.raises(ModelServerError, match="khmer-aaaaaaaaaaaa, is served"):
        server.deploy(gguf_of(spoiled, None), "c" * 16, CONTEXT)
    misspelled = server.model_copy(update={"engine": {"n_paralel": 2}})
    better = gguf_of(save_tiny_model(tmp_path / "better", seed=1), "Q8_0")
    with pytest.raises(ModelServerError, match=r"llama\.cpp has no setting 'n_paralel'"):
        misspelled.deploy(better, "d" * 16, CONTEXT)

    server.deploy(better, "d" * 16, CONTEXT)
    assert server.status().models == ("khmer", "khmer-dddddddddddd")
    assert server.rollback() == "a" * 16
    assert server.status().models == ("khmer", "khmer-aaaaaaaaaaaa")


def test_a_replica_dies_and_a_release_comes_after_the_old_one_and_questions_wait(released, tmp_path):
    server = ModelServer(home=str(tmp_path), port=free_port(), replicas=2, replace="after")
    stop, answers = threading.Event(), []
    asking = threading.Thread(target=questions_until, args=(stop, server, answers))
    try:
        server.deploy(released, "a" * 16, CONTEXT)
        first, second = ServerState.read(tmp_path / "server").ports
        asking.start()
        process = Engine(tmp_path / "server", first).process._process()
        assert process is not None
        process.kill()
        server.deploy(released, "b" * 16, CONTEXT)
        ports = ServerState.read(tmp_path / "server").ports
        assert len(ports) == 2
        assert not {first, second} & set(ports)
        count = len(answers)
        while len(answers) < count + 5:
            time.sleep(0.1)
    finally:
        stop.set()
        asking.join()
        server.stop()
    assert not [answer for answer in answers if answer.startswith("failed")]


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        ("/v1/chat/completions", {"messages": CHAT, "n": 2}, 400, "n: this model gives one choice an answer"),
        ("/v1/completions", {"prompt": ["មួយ", "ពីរ"]}, 400, "prompt: expected one prompt"),
        ("/v1/completions", {"prompt": "មួយ", "logprobs": 1}, 400, "logprobs: .* in chats only"),
        ("/v1/completions", {"prompt": "មួយ", "echo": True}, 400, "echo: "),
        ("/v1/embeddings", {"input": "មួយ"}, 404, "does not answer /v1/embeddings"),
        ("/v1/chat/completions", {"messages": CHAT, "tools": [WEATHER]}, 400, "tools: .* chat template"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused_by_name(server, path, fields, status, message):
    with pytest.raises(Refused, match=message):
        llama_cpp.translated(BODIES[path].model_validate({"model": "khmer", **fields}))
    headers = {"Authorization": f"Bearer {server.api_key()}"}
    response = httpx.post(server.address + path, json={"model": "khmer", **fields}, headers=headers)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_every_field_that_users_may_send_is_one_that_llama_cpp_knows():
    """Its server drops others without a word. The names are those of its documentation of this version."""
    known = {"messages", "prompt", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens"}
    known |= {"temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"}
    known |= {"tools", "tool_choice", "parallel_tool_calls", "logit_bias"}
    known |= {"seed", "stop", "ignore_eos", "n", "logprobs", "top_logprobs", "response_format", "timings_per_token"}
    everything = {
        "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.1, "frequency_penalty": 0.1, "n": 1, "seed": 1, "stop": "។", "stream": True,
        "stream_options": {"include_usage": True}, "ignore_eos": True, "user": "Sokha", "metadata": {}, "store": True,
        "service_tier": "auto", "logit_bias": {"1": 1},
    }  # fmt: skip
    chat = {"messages": CHAT, "max_completion_tokens": 4, "logprobs": True, "top_logprobs": 2, "safety_identifier": "1",
            "response_format": {"type": "text"}, "tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": True,
            "prompt_cache_key": "1"}  # fmt: skip
    for path, fields in (("/v1/chat/completions", chat), ("/v1/completions", {"prompt": "មួយ"})):
        body = BODIES[path].model_validate({"model": "khmer", **everything, **fields})
        forgotten = set(BODIES[path].model_fields) - body.model_fields_set - {"echo", "logprobs"}
        assert not forgotten, "this test must send every field"
        assert set(llama_cpp.translated(body, reads_tools=True)) <= known
