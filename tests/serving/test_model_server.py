"""vLLM serves the deployed model behind a key, a bad model is rolled back, and each obstacle has a clear message."""

import shutil
import socket
import stat
import sys

import httpx
import pytest

from khmer_assets.serving.client import ask
from resources.model_server import VLLM_PYTHON_VARIABLE, ModelServer, ModelServerError, link_files
from tests.tiny_model import save_tiny_model

QUESTION = "តើថ្ងៃនេះមេឃភ្លៀងទេ?"
DIGESTS = {name: name * 16 for name in "abc"}


def free_port() -> int:
    for port in range(8200, 8300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError("no free port between 8200 and 8299")


@pytest.fixture
def server(tmp_path):
    server = ModelServer(home=str(tmp_path), port=free_port())
    yield server
    server.stop()


@pytest.fixture
def empty_model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def test_the_key_is_made_once_and_only_its_owner_reads_it(server):
    key = server.api_key()
    assert len(key) >= 32
    assert server.api_key() == key
    assert stat.S_IMODE(server.key_file.stat().st_mode) == 0o600


def test_a_missing_vllm_environment_is_named_with_the_remedy(server, empty_model, monkeypatch):
    monkeypatch.setenv(VLLM_PYTHON_VARIABLE, "/nowhere/python")
    with pytest.raises(ModelServerError, match=r"/nowhere/python: no such file; .*make install.*KHMER_VLLM_PYTHON"):
        server.deploy(empty_model, DIGESTS["a"], 256)


def test_an_environment_without_vllm_is_named_with_the_remedy(server, empty_model, monkeypatch):
    monkeypatch.setenv(VLLM_PYTHON_VARIABLE, sys.executable)
    with pytest.raises(ModelServerError, match=r"has no vLLM; .*make install"):
        server.deploy(empty_model, DIGESTS["a"], 256)


def test_a_port_in_use_is_named_with_the_setting(server, empty_model):
    message = rf"port {server.port}.*serving\.port"
    with socket.create_server(("127.0.0.1", server.port)), pytest.raises(ModelServerError, match=message):
        server.deploy(empty_model, DIGESTS["a"], 256)
    assert not server.status().running


def test_a_folder_without_a_model_is_refused(server, tmp_path):
    with pytest.raises(ModelServerError, match=r"expected a transformers model folder, found no config\.json"):
        server.deploy(tmp_path, DIGESTS["a"], 256)


def test_stopping_when_nothing_runs_is_no_error(server):
    assert server.stop() is False
    assert server.status().models == ()


def test_asking_when_nothing_runs_says_how_to_start(server):
    with pytest.raises(ModelServerError, match=r"no model server listens at .*make run"):
        ask(QUESTION, server.base_url, server.api_key())


def test_linked_files_are_the_same_files_and_survive_their_first_home(tmp_path):
    source = tmp_path / "store" / "part"
    source.mkdir(parents=True)
    (source / "weights").write_text("ទម្ងន់")
    link_files(tmp_path / "store", tmp_path / "kept")
    assert (tmp_path / "kept" / "part" / "weights").samefile(source / "weights")
    shutil.rmtree(tmp_path / "store")
    assert (tmp_path / "kept" / "part" / "weights").read_text() == "ទម្ងន់"


@pytest.mark.slow
def test_a_new_model_replaces_the_former_and_a_broken_one_is_rolled_back(server, tmp_path):
    models = {name: save_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate("abc")}
    weights = models["c"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])

    assert server.deploy(models["a"], DIGESTS["a"], 128) > 0
    assert server.status().models == ("khmer", "khmer-aaaaaaaaaaaa")
    assert server.deploy(models["a"], DIGESTS["a"], 128) == 0, "the same version is not started again"
    assert httpx.get(f"{server.base_url}/models", trust_env=False).status_code == 401
    with pytest.raises(ModelServerError, match="API key"):
        ask(QUESTION, server.base_url, "another key")
    with pytest.raises(ModelServerError, match="khmer-unknown"):
        ask(QUESTION, server.base_url, server.api_key(), model="khmer-unknown")
    answer = ask(QUESTION, server.base_url, server.api_key(), max_tokens=8)
    assert ask(QUESTION, server.base_url, server.api_key(), max_tokens=8) == answer

    server.deploy(models["b"], DIGESTS["b"], 128)
    assert server.status().models == ("khmer", "khmer-bbbbbbbbbbbb")
    shutil.rmtree(models["b"])  # as the store forgets old versions

    with pytest.raises(ModelServerError, match=r"SafetensorError(.|\n)*khmer-bbbbbbbbbbbb, is served again"):
        server.deploy(models["c"], DIGESTS["c"], 128)
    assert server.status().models == ("khmer", "khmer-bbbbbbbbbbbb")

    assert server.stop() is True
    assert not server.status().running
