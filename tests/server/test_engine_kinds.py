"""Which engine runs a model, how it is started, and that vLLM gets what users write."""

import json

import pytest

from khmer_assets.server.engine_kinds import kind_of
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.keys import engine_key
from khmer_assets.server.llama_cpp import LlamaCpp
from khmer_assets.server.requests import Chat, Embeddings
from khmer_assets.server.state import ModelServerError, ModelVersion
from khmer_assets.server.vllm import Vllm

RELEASE = ModelVersion(digest="a" * 16, max_model_length=64, engine={"n_parallel": 2})
FIELDS = {"model": "khmer", "messages": [{"role": "user", "content": "សួស្តី"}], "n": 2, "repetition_penalty": 1.5}


def test_llama_cpp_runs_a_gguf_file_and_vllm_the_other_models(tmp_path):
    assert isinstance(kind_of(tmp_path), Vllm)
    (tmp_path / "Q4_K_M.gguf").touch()
    assert isinstance(kind_of(tmp_path), LlamaCpp)


def test_a_folder_without_a_model_is_no_model(tmp_path):
    with pytest.raises(ModelServerError, match=r"found no config\.json in it, nor a \.gguf file"):
        kind_of(tmp_path).require(tmp_path)


def test_llama_cpp_is_told_what_to_serve_and_its_key_in_the_environment_alone(tmp_path):
    model = kept_model(tmp_path, RELEASE.digest)
    model.mkdir(parents=True)
    (model / "Q4_K_M.gguf").touch()
    command, env, _ = kind_of(model).command(tmp_path, 8001, RELEASE, ())
    assert command[-5:] == [str(model / "Q4_K_M.gguf"), "8001", "khmer-aaaaaaaaaaaa", "64", '{"n_parallel": 2}']
    assert engine_key(tmp_path) in env.values()
    assert engine_key(tmp_path) not in command


def test_vllm_gets_what_users_write_and_its_errors_are_told_as_openai_would():
    body = Chat.model_validate({**FIELDS, "user": "sokha"})
    Vllm().check(body)
    assert json.loads(Vllm().content(body)) == FIELDS
    told = {"message": "too many tokens", "type": "BadRequestError", "param": "max_tokens", "code": 400}
    refused = Vllm().refusal(400, json.dumps({"error": told}).encode(), "/v1/completions")
    assert refused is not None and refused.body()["error"] == told | {"type": "invalid_request_error", "code": None}
    for other in (b'{"detail": "Not Found"}', b'{"error": "Not Found"}', b"", b"[1]", b'"error"'):
        refused = Vllm().refusal(404, other, "/v1/embeddings")
        assert refused is not None and refused.message == "the served model does not answer /v1/embeddings"
    Vllm().check(Embeddings(model="khmer", input="សួស្តី"))
