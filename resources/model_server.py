"""The vLLM server: started from its own environment, replaced when a model changes, put back when the new one fails.

What belongs here: the process, its state and its key. What does not: which model deserves it (`khmer_assets/serving/`).
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import httpx

from resources.home import PROJECT
from resources.processes import BackgroundProcess, PortInUse, require_free_port

VLLM_PYTHON_VARIABLE = "KHMER_VLLM_PYTHON"
MODEL_NAME = "khmer"
START_SECONDS = 600  # tens of seconds for a small model; reading a large one from a slow disk takes minutes
PROGRESS_SECONDS = 10
PROBE = "សួស្តី"

Say = Callable[[str], None]


class ModelServerError(Exception):
    """A model that is not served; the message says why and what to do."""


@dataclass(frozen=True)
class Deployment:
    """What the server was last successfully started with."""

    digest: str
    port: int
    max_model_length: int

    @property
    def names(self) -> tuple[str, str]:
        """The names under which requests may choose the model: a constant one, and one that tells its version."""
        return MODEL_NAME, f"{MODEL_NAME}-{self.digest[:12]}"


@dataclass(frozen=True)
class ServerStatus:
    """Whether the process runs, and the names of the models that it offers (none while it starts)."""

    running: bool
    models: tuple[str, ...]


class ModelServer(dg.ConfigurableResource[Any]):
    """One vLLM on 127.0.0.1 behind an API key. Its state lies in `<home>/server`, for every process to find.

    The served model's files are kept there too, as hard links: a former model can be served again although the store
    has forgotten it.
    """

    home: str
    port: int

    @property
    def base_url(self) -> str:
        """The address of the OpenAI-compatible interface."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def key_file(self) -> Path:
        """The file that holds the API key, readable by its owner alone."""
        return self._folder / "api_key"

    def api_key(self) -> str:
        """The API key; made at the first call."""
        if not self.key_file.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, aside = tempfile.mkstemp(dir=self._folder)  # mode 0600
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))
            with suppress(FileExistsError):  # another process was faster, and its key counts
                os.link(aside, self.key_file)
            os.unlink(aside)
        return self.key_file.read_text().strip()

    def status(self) -> ServerStatus:
        """Whether the server runs and what it serves."""
        running = self._process.is_running()
        return ServerStatus(running, self._served_names(self.port) if running else ())

    def deploy(self, model: Path, digest: str, max_model_length: int, say: Say = print) -> float:
        """Serve the transformers folder `model` as version `digest`; return the seconds until it answered.

        Nothing happens when this version is already served. When the new model fails, the former one is started again
        and `ModelServerError` tells why. `max_model_length` is in tokens, prompt and answer together.
        """
        wanted = Deployment(digest, self.port, max_model_length)
        with self._locked(say):
            former = self._deployed()
            if former == wanted and wanted.names[1] in self.status().models:
                say(f"{wanted.names[1]} is already served")
                return 0.0
            python, on_cpu = vllm_environment()
            if not (model / "config.json").is_file():
                raise ModelServerError(f"{model}: expected a transformers model folder, found no config.json in it")
            started = time.monotonic()
            self._keep(model, digest)
            try:
                self._start(wanted, python, on_cpu, say)
            except ModelServerError as error:
                if former is None or former == wanted:
                    raise
                say(f"{error}\nstarting the former model again")
                try:
                    self._start(former, python, on_cpu, say)
                except ModelServerError as second:
                    raise ModelServerError(f"{error}\nThe former model does not start either: {second}") from error
                raise ModelServerError(f"{error}\nThe former model, {former.names[1]}, is served again.") from error
            else:
                self._remember(wanted)
            finally:
                self._forget_other_models()
            return time.monotonic() - started

    def stop(self) -> bool:
        """End the server; True if it ran."""
        with self._locked(print):
            return self._process.stop()

    @property
    def _folder(self) -> Path:
        return Path(self.home) / "server"

    @property
    def _process(self) -> BackgroundProcess:
        return BackgroundProcess(self._folder, "vllm")

    @contextmanager
    def _locked(self, say: Say) -> Iterator[None]:
        """One deployment at a time, also between processes: the sensor and a user may ask for the same one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("waiting for another deployment to end")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _start(self, deployment: Deployment, python: Path, on_cpu: bool, say: Say) -> None:
        self._process.stop()
        try:
            remedy = "end that program or set serving.port in the recipe to another port"
            require_free_port(deployment.port, "vLLM", remedy)
        except PortInUse as error:
            raise ModelServerError(str(error)) from None
        self._process.log.unlink(missing_ok=True)
        # not the console script: that of the CPU build does not start
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--host", "127.0.0.1", "--port", str(deployment.port)]
        command += ["--model", str(self._kept(deployment.digest)), "--served-model-name", *deployment.names]
        command += ["--max-model-len", str(deployment.max_model_length)]
        env = {
            "VLLM_API_KEY": self.api_key(),  # an argument would show in the list of processes
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        if on_cpu:
            command += ["--enforce-eager"]  # compiling takes longer than it saves
            env["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB
        # `python -m` imports from the working directory first: not from the project's
        self._process.start(command, env=env, cwd=self._folder)
        try:
            self._wait_until_healthy(deployment.port, say)
            self._check_answers(deployment)
        except ModelServerError as error:
            self._process.stop()
            self._process.log.replace(self._failed_log)
            raise ModelServerError(f"{error}\nAll that vLLM wrote is in {self._failed_log}") from None

    def _wait_until_healthy(self, port: int, say: Say) -> None:
        started = told = time.monotonic()
        while not self._answers_health(port):
            now = time.monotonic()
            if not self._process.is_running():
                raise ModelServerError(f"vLLM refuses the model: {self._reason()}")
            if now - started > START_SECONDS:
                raise ModelServerError(f"vLLM was not ready after {START_SECONDS} s: {self._reason()}")
            if now - told >= PROGRESS_SECONDS:
                told = now
                say(f"vLLM is starting, {now - started:.0f} s")
            time.sleep(0.5)

    def _check_answers(self, deployment: Deployment) -> None:
        offered = self._served_names(deployment.port)
        if deployment.names[1] not in offered:
            raise ModelServerError(f"expected {deployment.names[1]} on port {deployment.port}, found {offered}")
        body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": PROBE}], "max_tokens": 8}
        try:
            response = self._http(deployment.port).post("/v1/chat/completions", json=body, timeout=120)
        except httpx.HTTPError as error:
            raise ModelServerError(f"vLLM started but does not answer ({error!r}): {self._reason()}") from None
        if response.status_code != 200 or not response.json()["choices"]:
            raise ModelServerError(f"vLLM started but does not answer: {response.text[:500]}")

    def _answers_health(self, port: int) -> bool:
        with suppress(httpx.HTTPError):
            return self._http(port).get("/health").status_code == 200
        return False

    def _served_names(self, port: int) -> tuple[str, ...]:
        with suppress(httpx.HTTPError):
            response = self._http(port).get("/v1/models")
            if response.status_code == 200:
                return tuple(model["id"] for model in response.json()["data"])
        return ()

    def _http(self, port: int) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.api_key()}"}
        # a proxy named in the environment is not for this machine's own addresses
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10, trust_env=False)

    def _reason(self) -> str:
        """The last error in vLLM's log that names a cause, else the end of the log."""
        log = self._process.log.read_text(errors="replace")
        errors = re.findall(
            r"^(?:\(.*?\) )?(?:ERROR .*?\] )?([\w.]+(?:Error|Exception): .+(?:\n  Value error.*)?)", log, re.MULTILINE
        )
        causes = [error for error in errors if "root cause" not in error]
        return causes[-1] if causes else self._process.end_of_log()

    @property
    def _failed_log(self) -> Path:
        return self._folder / "vllm.failed.log"

    @property
    def _record(self) -> Path:
        return self._folder / "server.json"

    def _deployed(self) -> Deployment | None:
        try:
            return Deployment(**json.loads(self._record.read_text()))
        except FileNotFoundError:
            return None

    def _remember(self, deployment: Deployment) -> None:
        aside = self._record.with_suffix(".aside")
        aside.write_text(json.dumps(asdict(deployment)))
        os.replace(aside, self._record)

    def _kept(self, digest: str) -> Path:
        return self._folder / "models" / digest

    def _keep(self, model: Path, digest: str) -> None:
        kept = self._kept(digest)
        if not kept.exists():
            aside = kept.with_name(".aside")
            shutil.rmtree(aside, ignore_errors=True)
            link_files(model, aside)
            aside.rename(kept)

    def _forget_other_models(self) -> None:
        deployed = self._deployed()
        for folder in (self._folder / "models").iterdir():
            if deployed is None or folder.name != deployed.digest:
                shutil.rmtree(folder)


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


def link_files(source: Path, target: Path) -> None:
    """Give the files of the folder `source` a second home in the new folder `target`; copies where links cannot be."""

    def link(file: str, new: str) -> None:
        try:
            os.link(os.path.realpath(file), new)
        except OSError:  # another disk, or one without hard links
            shutil.copy2(file, new)

    shutil.copytree(source, target, copy_function=link)
