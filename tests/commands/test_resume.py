"""`khmer resume --foreground`, as systemd runs it: what is killed comes back, and its end is the end of everything."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import yaml

from khmer_assets.compression import gguf
from khmer_assets.foundation.home import HOME_VARIABLE, PROJECT
from khmer_assets.recipe import RECIPE_VARIABLE, SAMPLE_RECIPE
from khmer_assets.server.engines import known_engines
from resources.model_server import ModelServer
from tests.ports import free_port
from tests.server.test_supervisor import wait_until
from tests.tiny_model import save_tiny_model


@pytest.mark.slow
def test_a_killed_supervisor_is_started_again_and_sigterm_ends_all(tmp_path):
    (tmp_path / "gguf").mkdir()
    gguf.write_float16(save_tiny_model(tmp_path / "model"), tmp_path / "gguf" / "float16.gguf")
    recipe = yaml.safe_load(SAMPLE_RECIPE.read_text())
    recipe |= {"catalogue": str(SAMPLE_RECIPE.parent / recipe["catalogue"]), "adapters": [], "failures": None}
    recipe["serving"]["port"] = free_port()
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
    server = ModelServer(home=str(tmp_path / "home"), port=recipe["serving"]["port"])
    server.deploy(tmp_path / "gguf", "a" * 16, 128)
    server.stop()

    environment = {**os.environ, HOME_VARIABLE: server.home, RECIPE_VARIABLE: str(tmp_path / "recipe.yaml")}
    command = [sys.executable, "-m", "khmer_assets", "resume", "--foreground"]
    with subprocess.Popen(command, cwd=PROJECT, env=environment) as unit:
        try:
            wait_until(lambda: server.status().models)
            gateway = server._gateway({}).process
            supervisor = gateway._process()
            (engine,) = [engine.process._process() for engine in known_engines(tmp_path / "home" / "server")]
            supervisor.kill()
            psutil.wait_procs([supervisor])
            wait_until(lambda: gateway.is_running() and server.status().models)
            assert engine.is_running(), "answers on it have not been cut"
            unit.send_signal(signal.SIGTERM)
            assert unit.wait(60) == 0
            assert not gateway.is_running() and not engine.is_running()
        finally:
            unit.kill()
            server.stop()
