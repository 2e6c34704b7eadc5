"""The engines, vLLM or for a GGUF file llama.cpp, each a process on a port of its own.

What belongs here: starting, checking and stopping an engine. What does not: what differs between engines
(`engine_kinds.py`), when one replaces another (`resources/model_server.py`), what is started again after a crash
(`supervisor.py`), what users may ask of it (`gateway.py`). No Dagster here, so that the supervisor starts at once.
"""

import math
import re
import time
from contextlib import suppress
from pathlib import Path

import httpx

from khmer_assets.foundation.processes import BackgroundProcess
from khmer_assets.server.engine_kinds import kind_of
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.keys import engine_key
from khmer_assets.server.state import AdapterVersion, ModelServerError, ModelVersion, Say
from khmer_assets.server.vllm import lora_module

START_SECONDS = 600  # tens of seconds for a small model; reading a large one from a slow disk takes minutes
PROGRESS_SECONDS = 10
SMOKE_PROMPTS = ("សួស្តី", "តើអ្នកជានរណា?", "១ + ២ = ?")


class Engine:
    """One vLLM or llama.cpp on 127.0.0.1:`port`."""

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        self.port = port
        self.process = BackgroundProcess(folder, f"engine-{port}")

    def start(self, release: ModelVersion, adapters: tuple[AdapterVersion, ...] = ()) -> None:
        """Start it in the background, unless it runs. Raises `ModelServerError` where that cannot be."""
        kind = kind_of(kept_model(self.folder, release.digest), release.engine)
        command, env, cwd = kind.command(self.folder, self.port, release, adapters)
        try:
            self.process.start(command, env=env, cwd=cwd)
        except OSError as error:
            raise ModelServerError(f"the engine cannot be started: {error}") from None

    def wait_until_healthy(self, say: Say) -> None:
        """Return when it answers; raise `ModelServerError` with its own reason when its process ends before that."""
        started = told = time.monotonic()
        while not self.answers_health():
            now = time.monotonic()
            if not self.process.is_running():
                raise ModelServerError(f"the engine refuses the model: {self.reason()}")
            if now - started > START_SECONDS:
                raise ModelServerError(f"the engine was not ready after {START_SECONDS} s: {self.reason()}")
            if now - told >= PROGRESS_SECONDS:
                told = now
                say(f"the engine is starting on port {self.port}, {now - started:.0f} s")
            time.sleep(0.5)

    def load(self, adapter: AdapterVersion) -> None:
        """Load an adapter beside the model, unless it is there. Raises `ModelServerError` with vLLM's reason."""
        module = lora_module(self.folder, adapter)
        body = {"lora_name": module["name"], "lora_path": module["path"]}
        try:
            response = self._http(120).post("/v1/load_lora_adapter", json=body)
        except httpx.HTTPError as error:
            raise ModelServerError(f"vLLM does not answer ({error!r}): {self.reason()}") from None
        if response.status_code != 200 and adapter.names[1] not in self.served_names():
            raise ModelServerError(f"vLLM refuses the adapter {adapter.names[1]}: {response.text[:1000]}")

    def unload(self, adapter: AdapterVersion) -> None:
        """Forget an adapter; answers that use it still end. An engine that does not have it is left as it is."""
        with suppress(httpx.HTTPError):
            self._http(120).post("/v1/unload_lora_adapter", json={"lora_name": adapter.names[1]})

    def check_answers(self, name: str) -> None:
        """Raise `ModelServerError` unless it offers this model and completes Khmer prompts with finite figures."""
        offered = self.served_names()
        if name not in offered:
            raise ModelServerError(f"expected {name} on port {self.port}, found {offered}")
        for prompt in SMOKE_PROMPTS:
            body = {"model": name, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
            # broken weights show in the log probabilities: they are not numbers, which JSON does not have
            body |= {"max_tokens": 8, "logprobs": True}
            try:
                response = self._http(120).post("/v1/chat/completions", json=body)
            except httpx.HTTPError as error:
                raise ModelServerError(f"the engine started but does not answer ({error!r}): {self.reason()}") from None
            if response.status_code != 200:
                raise ModelServerError(f"the engine started but does not answer {prompt!r}: {response.text[:500]}")
            (choice,) = response.json()["choices"]
            figures = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or []]
            if not figures or not all(value is not None and math.isfinite(value) for value in figures):
                raise ModelServerError(f"the model answers {prompt!r} with probabilities that are no numbers")

    def answers_health(self) -> bool:
        """Whether /health says that all is well."""
        with suppress(httpx.HTTPError):
            return self._http(10).get("/health").status_code == 200
        return False

    def served_names(self) -> tuple[str, ...]:
        """The names of the models that it offers; none when it does not answer."""
        with suppress(httpx.HTTPError):
            response = self._http(10).get("/v1/models")
            if response.status_code == 200:
                return tuple(model["id"] for model in response.json()["data"])
        return ()

    def reason(self) -> str:
        """The last error in its log that names a cause, else the end of the log."""
        log = self.process.log.read_text(errors="replace") if self.process.log.exists() else ""
        errors = re.findall(
            r"^(?:\(.*?\) )?(?:ERROR .*?\] )?([\w.]+(?:Error|Exception): .+(?:\n  Value error.*)?)", log, re.MULTILINE
        )
        causes = [error for error in errors if "root cause" not in error]
        return causes[-1] if causes else self.process.end_of_log()

    def _http(self, seconds: float) -> httpx.Client:
        headers = {"Authorization": f"Bearer {engine_key(self.folder)}"}
        # a proxy named in the environment is not for this machine's own addresses
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=seconds, trust_env=False)


def known_engines(folder: Path) -> list[Engine]:
    """The engines that were started and not stopped, also those that no state names."""
    return [Engine(folder, int(file.stem.removeprefix("engine-"))) for file in sorted(folder.glob("engine-*.json"))]


def require_engine(model: Path) -> None:
    """Raise `ModelServerError` unless the folder holds a model and the engine for it is installed."""
    kind_of(model).require(model)
