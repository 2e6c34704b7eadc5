"""What serves, under load: releases that take each other's place, and the processes that may be killed meanwhile."""

import asyncio
import random
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import aiohttp
import psutil

from benchmarks.chaos.kills import GIVEN_UP_AFTER, PROCESSES, Kill, new_folder, small_recipe, waited
from benchmarks.gateway import Load, gateway_process, one_answer, prompts, random_model
from khmer_assets.compression import gguf
from khmer_assets.foundation.processes import free_ports
from khmer_assets.server.engines import known_engines
from khmer_assets.server.state import ModelServerError
from resources.model_server import ModelServer

USERS = 4


class Serving:
    """Two releases for llama.cpp, users who stream answers, and kills of what serves them or exchanges them."""

    def __init__(self, folder: Path, chance: random.Random):
        self.chance = chance
        (port,) = free_ports(8700, 1)
        self.server = ModelServer(home=str(folder), port=port)
        recipe = small_recipe()
        self.models = []
        for seed in range(2):
            model = random_model(folder / f"model{seed}", recipe, seed)
            released = new_folder(folder / f"gguf{seed}")
            gguf.write_float16(model, released / "float16.gguf")
            self.models.append((released, f"{seed}" * 16))
        self.turn = 0
        started = time.monotonic()
        deploy(str(folder), port, "beside", *self.models[0])
        self.seconds = time.monotonic() - started
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        """What Dagster's sensor does."""
        while not self.ended.wait(5):
            with suppress(ModelServerError):
                self.server.keep_serving()

    def close(self) -> None:
        """Stop what serves."""
        self.ended.set()
        self.server.stop()

    def _is_whole(self) -> bool:
        """Whether a supervisor runs with a gateway; one whose supervisor was killed answers until it is replaced."""
        with suppress(AssertionError, IndexError, psutil.NoSuchProcess):
            return bool(gateway_process(self.server).is_running())
        return False

    def _answers(self) -> bool:
        load = Load()
        asyncio.run(self._ask(load, "តើអ្វីទៅ?"))
        return load.answers == 1

    async def _ask(self, load: Load, prompt: str) -> None:
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            with suppress(asyncio.TimeoutError):
                await one_answer(session, self.server.address, self.server.api_key(), prompt, load)

    def kill(self, step: str) -> Kill:
        """Kill a process while users are served ("gateway"), or while a release takes another's place."""
        ended, requests = threading.Event(), list[tuple[float, float, Load]]()

        def user(number: int) -> None:
            asked = prompts()
            while not ended.is_set():
                load, started = Load(), time.monotonic()
                asyncio.run(self._ask(load, asked[(number + len(requests)) % len(asked)]))
                requests.append((started, time.monotonic(), load))

        users = [threading.Thread(target=user, args=(number,)) for number in range(USERS)]
        for thread in users:
            thread.start()
        deployment = None
        if step == "deployment":
            self.turn += 1
            replace: Literal["beside", "after"] = self.chance.choice(["beside", "after"])
            where = (self.server.home, self.server.port, replace)
            deployment = PROCESSES.Process(target=deploy, args=(*where, *self.models[self.turn % 2]))
            deployment.start()
        time.sleep(self.chance.uniform(0, self.seconds + 3))
        name, victim = self._victim(deployment)
        killed = time.monotonic()
        with suppress(psutil.NoSuchProcess):
            victim.kill()
            while victim.status() != psutil.STATUS_ZOMBIE:  # or it may be taken for one that is back
                time.sleep(0.01)
        found = Kill(step, name)
        seconds = waited(lambda: self._is_whole() and self._answers())
        recovered = time.monotonic()
        found.recovered = GIVEN_UP_AFTER if seconds is None else seconds
        found.lost_artifacts = int(seconds is None)
        if deployment is not None:
            deployment.join(GIVEN_UP_AFTER)
        time.sleep(1)
        ended.set()
        for thread in users:
            thread.join()
        for started, end, load in requests:
            if not load.answers and not (started <= recovered and end >= killed):
                print(f"failed without a cause: {load.errors}", flush=True)
                found.failed_requests += 1
        return found

    def _victim(self, deployment: Any) -> tuple[str, psutil.Process]:
        found: dict[str, psutil.Process | None] = {}
        if deployment is not None and deployment.is_alive():
            found["deployment"] = psutil.Process(deployment.pid)
        with suppress(AssertionError, IndexError, psutil.NoSuchProcess):  # one of them is being started again
            gateway = gateway_process(self.server)
            found |= {"gateway": gateway, "supervisor": gateway.parent()}
        for engine in known_engines(Path(self.server.home) / "server"):
            found[f"engine {engine.port}"] = engine.process._process()
        living = {name: process for name, process in found.items() if process is not None}
        name = self.chance.choice(sorted(living))
        return name.split()[0], living[name]


def deploy(home: str, port: int, replace: Literal["beside", "after"], model: Path, digest: str) -> None:
    """Serve the model."""
    ModelServer(home=home, port=port, replace=replace).deploy(model, digest, 128)
