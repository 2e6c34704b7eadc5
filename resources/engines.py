"""The engines, vLLM or for a GGUF file llama.cpp, each a process on a port of its own, and `server.json`, the record
of which of them serve.

What belongs here: starting, checking and stopping an engine. What does not: when one replaces another
(`model_server.py`), what is started again after a crash (`supervisor.py`), what users may ask of it
(`khmer_assets/serving/gateway.py`). No Dagster here, so that the supervisor and the gateway start at once.
"""

import fcntl
import json
import math
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from resources.home import PROJECT
from resources.llama_cpp_server import KEY_VARIABLE
from resources.processes import BackgroundProcess

VLLM_PYTHON_VARIABLE = "KHMER_VLLM_PYTHON"
MODEL_NAME = "khmer"
START_SECONDS = 600  # tens of seconds for a small model; reading a large one from a slow disk takes minutes
PROGRESS_SECONDS = 10
SMOKE_PROMPTS = ("សួស្តី", "តើអ្នកជានរណា?", "១ + ២ = ?")

Say = Callable[[str], None]


class ModelServerError(Exception):
    """A model that is not served; the message says why and what to do."""


class Release(BaseModel):
    """A model version and how its engine runs it: `max_model_length` in tokens, `engine` the engine's own settings.

    `base` is the digest of the model that adapters must have been trained on.
    """

    model_config = ConfigDict(frozen=True)

    digest: str
    max_model_length: int
    engine: dict[str, Any] = {}
    base: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """The names under which requests may choose the model: a constant one, and one that tells its version."""
        return MODEL_NAME, f"{MODEL_NAME}-{self.digest[:12]}"

    @property
    def takes_adapters(self) -> bool:
        """Whether its engines are started with room for adapters."""
        return bool(self.engine.get("enable_lora"))


class Adapter(BaseModel):
    """A version of a LoRA adapter; `base` is the digest of the model that it was trained on."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    base: str

    @property
    def names(self) -> tuple[str, str]:
        """As of a release. Engines know the second alone: weights that are others never have the same name."""
        return f"{MODEL_NAME}-{self.name}", f"{MODEL_NAME}-{self.name}-{self.digest[:12]}"


class ServerState(BaseModel):
    """What is served where. The gateway and the supervisor follow the file; `ModelServer` alone writes it.

    `ports`: one an engine. `former`: what a rollback serves. `rolled_back`: the digest that one has replaced.
    `adapters`: of the release and of the former one. `retired`: digests of adapters that were taken away on purpose.
    `gateway`: settings that only the gateway understands. `stopped`: ended on purpose.
    """

    model_config = ConfigDict(frozen=True)

    release: Release | None = None
    ports: tuple[int, ...] = ()
    former: Release | None = None
    rolled_back: str | None = None
    adapters: tuple[Adapter, ...] = ()
    retired: tuple[str, ...] = ()
    gateway: dict[str, Any] = {}
    stopped: bool = False

    @classmethod
    def read(cls, folder: Path) -> "ServerState":
        """The state in `folder`; an empty one when there is none, or one of an earlier version of this program."""
        try:
            return cls.model_validate_json((folder / "server.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    def adapters_of(self, release: Release) -> tuple[Adapter, ...]:
        """Those that were trained on what the release was made from, if it takes any."""
        return tuple(a for a in self.adapters if a.base == release.base) if release.takes_adapters else ()

    def names(self) -> dict[str, Adapter | None]:
        """The names that requests may choose, and the adapter behind each; None stands for the release itself."""
        if self.release is None:
            return {}
        chosen: dict[str, Adapter | None] = dict.fromkeys(self.release.names)
        return chosen | {name: adapter for adapter in self.adapters_of(self.release) for name in adapter.names}

    def write(self, folder: Path) -> None:
        """Replace the file in one step."""
        with state_lock(folder):
            aside = folder / "server.aside"
            aside.write_text(self.model_dump_json(indent=1))
            os.replace(aside, folder / "server.json")


@contextmanager
def state_lock(folder: Path) -> Iterator[None]:
    """Held for moments: while the state changes, and while the supervisor starts what the state names."""
    with (folder / "state.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def secret(file: Path) -> str:
    """The secret in `file`, readable by its owner alone; made at the first call."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=file.parent)  # mode 0600
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # another process was faster, and its secret counts
            os.link(aside, file)
        os.unlink(aside)
    return file.read_text().strip()


def engine_key(folder: Path) -> str:
    """The key that the engines want. Only the gateway uses it; users have keys of their own."""
    return secret(folder / "engine_key")


class Engine:
    """One vLLM or llama.cpp on 127.0.0.1:`port`."""

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        self.port = port
        self.process = BackgroundProcess(folder, f"engine-{port}")

    def start(self, release: Release, adapters: tuple[Adapter, ...] = ()) -> None:
        """Start it in the background, unless it runs. Raises `ModelServerError` where there is no vLLM."""
        if file := gguf_file(kept_model(self.folder, release.digest)):
            command, env = self._llama_cpp_command(file, release)
            self.process.start(command, env=env, cwd=PROJECT)
        else:
            command, env = self._vllm_command(release, adapters)
            # `python -m` imports from the working directory first: not from the project's
            self.process.start(command, env=env, cwd=self.folder)

    def _llama_cpp_command(self, file: Path, release: Release) -> tuple[list[str], dict[str, str]]:
        settings = [release.names[1], str(release.max_model_length), json.dumps(release.engine)]
        command = [sys.executable, "-m", "resources.llama_cpp_server", str(file), str(self.port), *settings]
        # threads that wait for each other give the core away: on a busy machine, spinning takes ten times as long
        return command, {KEY_VARIABLE: engine_key(self.folder), "OMP_WAIT_POLICY": "passive"}

    def _vllm_command(self, release: Release, adapters: tuple[Adapter, ...]) -> tuple[list[str], dict[str, str]]:
        python, on_cpu = vllm_environment()
        # not the console script: that of the CPU build does not start
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--disable-uvicorn-access-log"]
        command += ["--model", str(kept_model(self.folder, release.digest)), "--served-model-name"]
        command += reversed(release.names)  # an answer names the first of them
        command += ["--max-model-len", str(release.max_model_length)]
        for name, value in release.engine.items():
            option = name.replace("_", "-")
            command += [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else []
            command += [] if isinstance(value, bool) else [f"--{option}", str(value)]
        if adapters:
            command += ["--lora-modules", *(json.dumps(_lora_module(self.folder, adapter)) for adapter in adapters)]
        env = {
            "VLLM_API_KEY": engine_key(self.folder),  # an argument would show in the list of processes
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(release.takes_adapters),
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "300",  # seconds; the gateway closes idle connections first
            "DO_NOT_TRACK": "1",
        }
        if on_cpu:
            command += ["--enforce-eager"]  # compiling takes longer than it saves
            env["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
            # Engines that bind themselves to cores all take the same ones: the new one of a deployment then hardly
            # runs while the old one is busy. A core is left to the gateway and to vLLM's own front end.
            env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
            env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) - 1))
        return command, env

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

    def load(self, adapter: Adapter) -> None:
        """Load an adapter beside the model, unless it is there. Raises `ModelServerError` with vLLM's reason."""
        module = _lora_module(self.folder, adapter)
        body = {"lora_name": module["name"], "lora_path": module["path"]}
        try:
            response = self._http(120).post("/v1/load_lora_adapter", json=body)
        except httpx.HTTPError as error:
            raise ModelServerError(f"vLLM does not answer ({error!r}): {self.reason()}") from None
        if response.status_code != 200 and adapter.names[1] not in self.served_names():
            raise ModelServerError(f"vLLM refuses the adapter {adapter.names[1]}: {response.text[:1000]}")

    def unload(self, adapter: Adapter) -> None:
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


def gguf_file(model: Path) -> Path | None:
    """The GGUF file of a model's folder, which llama.cpp serves; None for a transformers folder, which vLLM serves."""
    return next(model.glob("*.gguf"), None)


def require_engine(model: Path) -> None:
    """Raise `ModelServerError` unless the folder holds a model and the engine for it is installed."""
    if gguf_file(model):
        return
    if not (model / "config.json").is_file():
        message = "expected a transformers model folder, found no config.json in it, nor a .gguf file for llama.cpp"
        raise ModelServerError(f"{model}: {message}")
    vllm_environment()


def vllm_environment() -> tuple[Path, bool]:
    """The Python that has vLLM, and whether it computes on the CPU. Raises `ModelServerError` when there is none."""
    python = Path(os.environ.get(VLLM_PYTHON_VARIABLE) or PROJECT / ".venv-vllm" / "bin" / "python")
    remedy = f"build vLLM's environment with `make install`, or let {VLLM_PYTHON_VARIABLE} name a Python that has vLLM"
    if not python.is_file():
        raise ModelServerError(f"{python}: no such file; {remedy}")
    script = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    found = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False)
    distributions = set(found.stdout.split())
    if not distributions & {"vllm", "vllm-cpu"}:
        raise ModelServerError(f"{python} has no vLLM; {remedy}")
    return python, "vllm-cpu" in distributions or shutil.which("nvidia-smi") is None


def kept_model(folder: Path, digest: str) -> Path:
    """Where the files of a served model or adapter are: hard links, so that the store may forget the version."""
    return folder / "models" / digest


def _lora_module(folder: Path, adapter: Adapter) -> dict[str, str]:
    return {"name": adapter.names[1], "path": str(kept_model(folder, adapter.digest))}
