"""vLLM serves the deployed model behind a key, a bad model is rolled back, and each obstacle has a clear message."""

import random
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from khmer_assets.compression import gguf
from khmer_assets.foundation.files import link_files
from khmer_assets.foundation.home import PROJECT
from khmer_assets.server.client import ask
from khmer_assets.server.engines import Engine, known_engines
from khmer_assets.server.gateway_process import GatewayProcess
from khmer_assets.server.kept_models import forget_models, keep_model, kept_model
from khmer_assets.server.state import ModelServerError, ModelVersion, ServerState, deployment_lock
from khmer_assets.server.vllm import VLLM_PYTHON_VARIABLE
from resources.model_server import ModelServer
from resources.served_router import load_router
from tests.ports import free_port
from tests.server.api import ROWS, Api, routed
from tests.server.routers import NUMBER, learned
from tests.tiny_model import TOOL_MODEL_LENGTH, save_tiny_adapter, save_tiny_model, save_tool_model

QUESTION = "តើថ្ងៃនេះមេឃភ្លៀងទេ?"
KILLS = 10
DIGESTS = {name: name * 16 for name in "abcd"}


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


def test_an_address_of_another_machine_is_named_with_the_setting(server, empty_model):
    server = server.model_copy(update={"host": "192.0.2.1"})
    with pytest.raises(ModelServerError, match=r"cannot listen on port \d+ of 192\.0\.2\.1 .*serving\.host"):
        server.deploy(empty_model, DIGESTS["a"], 256)


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


def test_without_a_former_release_there_is_nothing_to_go_back_to(server):
    with pytest.raises(ModelServerError, match="no former release"):
        server.rollback()


def test_without_a_release_there_is_nothing_to_adapt(server, tmp_path):
    with pytest.raises(ModelServerError, match="no release is served"):
        server.load_adapter(tmp_path, "numbers", DIGESTS["b"], "base")


def test_a_state_that_cannot_be_read_is_told_and_the_server_can_be_stopped(server, empty_model, tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "server.json").write_text("{")
    for act in (server.keep_serving, server.resume, lambda: server.deploy(empty_model, DIGESTS["a"], 256)):
        with pytest.raises(ModelServerError, match=r"server\.json: expected what is served.*delete the file"):
            act()
    assert server.stop() is False


def test_what_is_killed_while_a_deployment_runs_is_started_again(server, tmp_path):
    (tmp_path / "server").mkdir()
    ServerState(release=ModelVersion(digest=DIGESTS["a"], max_model_length=8)).write(tmp_path / "server")
    with deployment_lock(tmp_path / "server"):
        assert server.keep_serving() is True
        assert server.keep_serving() is False
    assert server.status().running


def test_a_model_that_is_half_forgotten_is_not_taken_for_a_kept_one(tmp_path, empty_model, monkeypatch):
    keep_model(tmp_path, empty_model, DIGESTS["a"])
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)  # killed before it has deleted anything
    forget_models(tmp_path, ServerState())
    assert not kept_model(tmp_path, DIGESTS["a"]).exists()
    monkeypatch.undo()
    keep_model(tmp_path, empty_model, DIGESTS["a"])
    forget_models(tmp_path, ServerState())
    assert not list((tmp_path / "models").iterdir())


def test_nothing_is_kept_serving_before_the_first_deployment(server):
    assert server.keep_serving() is False


def questions_until(stop, server, answers: list[str]) -> None:
    """Ask again and again; what fails is an answer too."""
    while not stop.is_set():
        try:
            answers.append(ask(QUESTION, server.base_url, server.api_key(), max_tokens=8))
        except ModelServerError as error:
            answers.append(f"failed: {error}")
        stop.wait(0.2)


@pytest.mark.slow
def test_releases_take_over_under_load_and_broken_ones_do_not(server, tmp_path):
    models = {name: save_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate("abc")}
    spoil(models["c"] / "model.safetensors")

    server = server.model_copy(update={"engine": {"max_num_seqs": 8}})
    server.keep_tuned({"max_num_seqs": 64, "max_num_batched_tokens": 128})
    assert server.deploy(models["a"], DIGESTS["a"], 128) > 0
    engine = ServerState.read(tmp_path / "server").release.engine
    assert engine == {"max_num_seqs": 8, "max_num_batched_tokens": 128}, "what the recipe sets goes before"
    assert server.status().models == ("khmer", "khmer-aaaaaaaaaaaa")
    assert server.deploy(models["a"], DIGESTS["a"], 128) == 0, "the same version is not started again"
    with pytest.raises(ModelServerError, match="API key"):
        ask(QUESTION, server.base_url, "another key")
    with pytest.raises(ModelServerError, match="khmer-unknown"):
        ask(QUESTION, server.base_url, server.api_key(), model="khmer-unknown")
    answer = ask(QUESTION, server.base_url, server.api_key(), max_tokens=8)
    assert ask(QUESTION, server.base_url, server.api_key(), max_tokens=8) == answer

    stop, answers = threading.Event(), []
    asking = threading.Thread(target=questions_until, args=(stop, server, answers))
    asking.start()
    try:
        server.deploy(models["b"], DIGESTS["b"], 128)
        assert server.status().models == ("khmer", "khmer-bbbbbbbbbbbb")
        shutil.rmtree(models["b"])  # as the store forgets old versions
        with pytest.raises(ModelServerError, match=r"khmer-bbbbbbbbbbbb, is served"):
            server.deploy(models["c"], DIGESTS["c"], 128)
        assert server.rollback() == DIGESTS["a"]
        assert server.rolled_back() == DIGESTS["b"]
    finally:
        stop.set()
        asking.join()
    assert len(answers) > 10
    assert not [answer for answer in answers if answer.startswith("failed")]
    assert server.status().models == ("khmer", "khmer-aaaaaaaaaaaa")

    assert server.stop() is True
    assert not server.status().running
    assert server.keep_serving() is False, "what was stopped on purpose stays so"


def two_gguf_models(folder) -> list[Path]:
    """For llama.cpp, which starts at once."""
    made = []
    for number in range(2):
        made.append(folder / f"gguf-{number}")
        made[-1].mkdir()
        gguf.write_float16(save_tiny_model(folder / f"model-{number}", seed=number), made[-1] / "float16.gguf")
    return made


@pytest.mark.slow
@pytest.mark.parametrize("replace", ["beside", "after"])
def test_what_fails_when_all_has_been_switched_goes_back_and_leaves_one_release_running(
    server, tmp_path, monkeypatch, replace
):
    server = server.model_copy(update={"replace": replace})
    models = two_gguf_models(tmp_path)
    server.deploy(models[0], DIGESTS["a"], 128)
    wait = GatewayProcess.wait_until_serving

    def fails(gateway, release):
        wait(gateway, release)
        if release.digest == DIGESTS["b"]:
            raise ModelServerError("the gateway fell over")

    monkeypatch.setattr(GatewayProcess, "wait_until_serving", fails)
    with pytest.raises(ModelServerError, match=r"fell over\n.*\nThe former model, khmer-aaaaaaaaaaaa, is served"):
        server.deploy(models[1], DIGESTS["b"], 128)
    state = ServerState.read(tmp_path / "server")
    assert state.release.digest == DIGESTS["a"]
    assert [engine.port for engine in known_engines(tmp_path / "server")] == list(state.ports)
    assert server.status().models == ("khmer", "khmer-aaaaaaaaaaaa")
    ask(QUESTION, server.base_url, server.api_key(), max_tokens=8)
    assert [entry.name for entry in (tmp_path / "server" / "models").iterdir()] == [DIGESTS["a"]]


DEPLOYMENT = """
import json, sys
from pathlib import Path
from resources.model_server import ModelServer
settings, model, digest = sys.argv[1:]
print("now", flush=True)
ModelServer(**json.loads(settings)).deploy(Path(model), digest, 128, say=lambda _: None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("replace", ["beside", "after"])
def test_a_deployment_that_is_killed_at_any_moment_is_mended_without_a_hand(server, tmp_path, replace):
    server = server.model_copy(update={"replace": replace, "drain_seconds": 5})
    models = two_gguf_models(tmp_path)
    digests = [DIGESTS["a"], DIGESTS["b"]]
    server.deploy(models[0], digests[0], 128)
    seconds = server.deploy(models[1], digests[1], 128)
    settings = server.model_dump_json(include={"home", "port", "replace", "drain_seconds"})
    for number in range(KILLS):
        words = [DEPLOYMENT, settings, str(models[number % 2]), digests[number % 2]]
        with subprocess.Popen([sys.executable, "-c", *words], stdout=subprocess.PIPE, cwd=PROJECT) as deployment:
            deployment.stdout.readline()
            time.sleep(random.uniform(0, 1.3 * seconds))
            deployment.kill()
        killed = time.monotonic()
        while True:
            with suppress(ModelServerError):
                ask(QUESTION, server.base_url, server.api_key(), max_tokens=8)
                state = ServerState.read(tmp_path / "server")
                if state.ports == tuple(engine.port for engine in known_engines(tmp_path / "server")):
                    break
            assert time.monotonic() < killed + 60
            time.sleep(0.1)
        assert state.release.digest in digests
        print(replace, number, f"{time.monotonic() - killed:.1f} s until {state.release.digest[:1]} alone served")


@pytest.mark.slow
@pytest.mark.parametrize("replace", ["beside", "after"])
def test_a_supervisor_that_is_killed_at_any_moment_of_a_deployment_leaves_no_second_gap(server, tmp_path, replace):
    server = server.model_copy(update={"replace": replace, "drain_seconds": 5})
    models = two_gguf_models(tmp_path)
    digests = [DIGESTS["a"], DIGESTS["b"]]
    server.deploy(models[0], digests[0], 128)
    seconds = server.deploy(models[1], digests[1], 128)
    settings = server.model_dump_json(include={"home", "port", "replace", "drain_seconds"})
    ended, outages = threading.Event(), [[]]  # of each kill, the times at which nobody answered and somebody did again

    def knock() -> None:
        while not ended.wait(0.05):
            try:
                socket.create_connection((server.host, server.port), timeout=60).close()
                refused = False
            except OSError:
                refused = True
            if refused != len(outages[-1]) % 2:
                outages[-1].append(time.monotonic())

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        for number in range(KILLS // 2):
            words = [DEPLOYMENT, settings, str(models[number % 2]), digests[number % 2]]
            with subprocess.Popen([sys.executable, "-c", *words], stdout=subprocess.PIPE, cwd=PROJECT) as deployment:
                deployment.stdout.readline()
                time.sleep(random.uniform(0, 1.3 * seconds))
                supervisor = server._gateway(server.gateway).process._process()
                supervisor.kill()
                killed = time.monotonic()
                time.sleep(random.uniform(0, 1))
                server.keep_serving()  # the sensor, which knows of no deployment
                ask(QUESTION, server.base_url, server.api_key(), max_tokens=8)
                assert time.monotonic() < killed + 60
                assert deployment.wait(60) == 0, "the deployment goes on"
            ask(QUESTION, server.base_url, server.api_key(), max_tokens=8)
            assert server.status().models[1] == f"khmer-{digests[number % 2][:12]}"
            assert len(outages[-1]) in (0, 2), "no second gap"
            assert not outages[-1] or outages[-1][1] - outages[-1][0] < 1, "of a second"
            outages.append([])
    finally:
        ended.set()
        knocking.join()


@pytest.mark.slow
def test_each_field_does_what_the_page_says_and_adapters_come_and_go_and_what_is_killed_comes_back(server, tmp_path):
    model = save_tool_model(tmp_path / "a")
    server = server.model_copy(update={"engine": {"enable_lora": True, "max_lora_rank": 8}})
    server.deploy(model, DIGESTS["a"], TOOL_MODEL_LENGTH, base="base")
    for row in ROWS.values():
        row(Api(server.address, server.api_key(), "vllm"))
    supervisor = server._gateway(server.gateway).process._process()
    (gateway,) = supervisor.children()
    (port,) = ServerState.read(tmp_path / "server").ports

    def answer(name: str) -> str:
        return ask(QUESTION, server.base_url, server.api_key(), model=name, max_tokens=8)

    before = answer("khmer")
    first, second, large = (
        save_tiny_adapter(model, tmp_path / f"adapter-{r}-{s}", s, r) for r, s in ((8, 1), (8, 2), (64, 3))
    )
    server.load_adapter(first, "numbers", DIGESTS["b"], "base")
    assert server.status().models[2:] == ("khmer-numbers", "khmer-numbers-bbbbbbbbbbbb")
    adapted = answer("khmer-numbers")
    assert adapted != before == answer("khmer")
    with pytest.raises(ModelServerError, match="rank 64 is greater"):
        server.load_adapter(large, "numbers", DIGESTS["c"], "base")
    with pytest.raises(ModelServerError, match="trained on the model other"):
        server.load_adapter(second, "numbers", DIGESTS["c"], "other")
    with pytest.raises(ModelServerError, match=r"no adapter_model\.safetensors"):
        server.load_adapter(model, "numbers", DIGESTS["c"], "base")
    assert answer("khmer-numbers") == adapted, "what was served goes on"

    gateway.kill()
    assert answer("khmer") == before, "the question waits for the new gateway"
    Engine(tmp_path / "server", port).process._process().kill()
    assert answer("khmer-numbers") == adapted, "the question waits for the new engine, and its adapter"
    supervisor.kill()
    supervisor.wait()
    assert server.keep_serving() is True, "as after a restart of the machine"
    server.resume()
    assert answer("khmer-numbers") == adapted

    server.load_adapter(second, "numbers", DIGESTS["c"], "base")
    assert server.status().models[2:] == ("khmer-numbers", "khmer-numbers-cccccccccccc")
    assert answer("khmer-numbers") != adapted
    (router := tmp_path / DIGESTS["d"]).mkdir()
    learned(base="base").save(router)
    load_router(server, router, None)
    routed(Api(server.address, server.api_key(), "vllm"))
    server.retire_adapter("numbers")
    given = ask(NUMBER, server.base_url, server.api_key(), model="khmer-auto", max_tokens=8)
    itself = ask(NUMBER, server.base_url, server.api_key(), model="khmer", max_tokens=8)
    assert given == itself, "the adapter that the router names is not loaded any more"
    assert server.was_retired(DIGESTS["c"])
    with pytest.raises(ModelServerError, match="there is no model 'khmer-numbers'"):
        answer("khmer-numbers")
    with pytest.raises(ModelServerError, match="no adapter 'numbers'; served are: none"):
        server.retire_adapter("numbers")


def spoil(weights) -> None:
    """Make all weights of a model not-a-number, as a training that diverged does."""
    from safetensors.torch import load_file, save_file

    save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
