"""vLLM, which runs transformers folders: the process, and what it wants of a request.

One of the kinds of `engine_kinds.py`. The front door speaks vLLM's words to users, so little is translated here.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from pydantic_core import to_json

from khmer_assets.foundation import environments
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.keys import engine_key
from khmer_assets.server.refusals import Refused
from khmer_assets.server.requests import Body, Chat
from khmer_assets.server.state import AdapterVersion, ModelServerError, ModelVersion

VLLM_PYTHON_VARIABLE = "KHMER_VLLM_PYTHON"
# What makes answers fit a schema. vLLM's own choice, xgrammar, took 216 s to compile 30 bounds on the lengths of texts
# (a vocabulary of 49,152; one core), and others wait meanwhile; llguidance took 3 ms. Without the second, small models
# write spaces for ever.
SCHEMA_BACKEND = {"backend": "guidance", "disable_any_whitespace": True}


class Vllm:
    """vLLM's own server, in an environment of its own.

    `reads_tools`: whether the model does; `parser`: vLLM's name of what reads its calls.
    """

    def __init__(self, reads_tools: bool = False, parser: str | None = None):
        self.reads_tools = reads_tools
        self.parser = parser

    def require(self, model: Path) -> None:
        """Raise `ModelServerError` unless the folder holds a model and vLLM is installed."""
        if not (model / "config.json").is_file():
            message = "expected a transformers model folder, found no config.json in it, nor a .gguf file for llama.cpp"
            raise ModelServerError(f"{model}: {message}")
        vllm_environment()

    def command(
        self, folder: Path, port: int, release: ModelVersion, adapters: tuple[AdapterVersion, ...]
    ) -> tuple[list[str], dict[str, str], Path]:
        """What starts it. Raises `ModelServerError` where there is no vLLM."""
        python, on_cpu = vllm_environment()
        # not the console script: that of the CPU build does not start
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
        command += ["--model", str(kept_model(folder, release.digest)), "--served-model-name"]
        command += reversed(release.names)  # an answer names the first of them
        command += ["--max-model-len", str(release.max_model_length)]
        for name, value in release.engine.items():
            option = name.replace("_", "-")
            command += [f"--{option}" if value else f"--no-{option}"] if isinstance(value, bool) else []
            command += [] if isinstance(value, bool) else [f"--{option}", str(value)]
        if "structured_outputs_config" not in release.engine:
            command += ["--structured-outputs-config", json.dumps(SCHEMA_BACKEND)]
        if self.parser is not None:
            command += ["--enable-auto-tool-choice", "--tool-call-parser", self.parser]
        if adapters:
            command += ["--lora-modules", *(json.dumps(lora_module(folder, adapter)) for adapter in adapters)]
        env = {
            "VLLM_API_KEY": engine_key(folder),  # an argument would show in the list of processes
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENFORCE_STRICT_TOOL_CALLING": "0",  # by tags that xgrammar alone reads
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
            # The worker lives in the engine's own process: one less that imports torch for 9 s and keeps 600 MB. vLLM
            # parts them to bind the worker's threads, which is switched off above.
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        return command, env, folder  # `python -m` imports from the working directory first: not from the project's

    def check(self, body: Body) -> None:
        """Raise `Refused` for tools that the model does not read. What else vLLM cannot do, it says itself."""
        self.content(body)

    def content(self, body: Body) -> bytes:
        """The body as users write it, but for what a stream tells of tokens. Raises `Refused` as `check` does."""
        fields = body.fields_for(self.reads_tools) if isinstance(body, Chat) else body.model_dump(exclude_none=True)
        if isinstance(body, Chat) and body.may_call() and self.parser is None:
            told = "it is not known how this model writes calls; set serving.engine.tool_call_parser in the recipe"
            raise Refused(400, f"tools: {told}", parameter="tools", code="unsupported_parameter")
        if body.streams():
            fields["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return to_json(fields)

    def refusal(self, status: int, answer: bytes, path: str) -> Refused | None:
        """The error that vLLM has answered, as OpenAI would tell it: vLLM's `code` is the status, a number."""
        try:
            error = json.loads(answer)["error"]
            message, parameter = str(error["message"]), error.get("param")
        except (ValueError, KeyError, TypeError, AttributeError):  # a path that it does not have for a model
            return Refused(status, f"the served model does not answer {path}")
        return Refused(status, message, parameter=parameter if isinstance(parameter, str) else None)


def lora_module(folder: Path, adapter: AdapterVersion) -> dict[str, str]:
    """An adapter, as vLLM wants it named."""
    return {"name": adapter.names[1], "path": str(kept_model(folder, adapter.digest))}


def vllm_environment() -> tuple[Path, bool]:
    """The Python that has vLLM, and whether it computes on the CPU; waits while its environment is being built.

    Raises `ModelServerError` when there is none.
    """
    named = os.environ.get(VLLM_PYTHON_VARIABLE)
    python = Path(named) if named else environments.VLLM / "bin" / "python"
    if not named:
        environments.wait_until_built(environments.VLLM)  # `make run` builds it while the graph runs
    remedy = f"build vLLM's environment with `make install`, or let {VLLM_PYTHON_VARIABLE} name a Python that has vLLM"
    if not python.is_file():
        raise ModelServerError(f"{python}: no such file; {remedy}")
    script = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    found = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False)
    distributions = set(found.stdout.split())
    if not distributions & {"vllm", "vllm-cpu"}:
        raise ModelServerError(f"{python} has no vLLM; {remedy}")
    return python, "vllm-cpu" in distributions or shutil.which("nvidia-smi") is None
