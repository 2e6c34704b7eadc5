"""Load on an OpenAI-compatible server, made and measured by vLLM's own benchmark client.

One file for both sides, for vLLM has an environment of its own: `LoadClient` starts this file under vLLM's Python,
writes a run a line to it and reads a result a line. Importing vLLM takes seconds, so one process serves all runs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MEASURES = ("ttft", "tpot", "itl", "e2el")
COUNTS = ("completed", "failed", "duration", "total_input_tokens", "total_output_tokens")
RATES = ("request_throughput", "output_throughput", "total_token_throughput")
PERCENTILES = (50, 90, 95, 99)
FIGURES = (
    *COUNTS,
    *RATES,
    *(f"{part}_{measure}_ms" for measure in MEASURES for part in ("mean", *(f"p{p}" for p in PERCENTILES))),
)
BACKEND = "openai-chat"
KEY_VARIABLE = "KHMER_LOAD_KEY_"  # and the way's name in capitals


@dataclass(frozen=True)
class Run:
    """`users` ask `requests` questions in all, each user one after the other; each answer has `answer_tokens` tokens.

    `way`: the name of the key. `address`: of the server, without /v1. `prompts`: JSONL with the field `prompt`.
    """

    way: str
    address: str
    model: str
    tokenizer: str
    prompts: str
    users: int
    requests: int
    answer_tokens: int
    seed: int


class LoadError(Exception):
    """The client broke; the message has the end of its output."""


class LoadClient:
    """The client's process. `keys`: API keys by way; they go into its environment, for arguments can be read by all."""

    def __init__(self, python: Path, keys: Mapping[str, str], log: Path):
        self._log = log
        env = {
            **os.environ,
            **{KEY_VARIABLE + way.upper(): key for way, key in keys.items()},
            **{name: "127.0.0.1" for name in ("NO_PROXY", "no_proxy")},
            "HF_HUB_OFFLINE": "1",
        }
        # -P: the modules beside this file must not stand before libraries of the same name
        command = [str(python), "-P", __file__]
        with log.open("wb") as opened:
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=log.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=opened,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()

    def measure(self, run: Run) -> dict[str, Any]:
        """`FIGURES` of one run (times in ms, rates a second) and `error`, that of the first failed request or ''."""
        assert self._process.stdin and self._process.stdout, "both are pipes"
        try:
            print(json.dumps(asdict(run)), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise LoadError(self._ending()) from None
        if not (line := self._process.stdout.readline()):
            raise LoadError(self._ending())
        return dict(json.loads(line))

    def _ending(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-20:]
        return "vLLM's benchmark client ended; the end of its output:\n" + "\n".join(lines)


def only_whole(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """vLLM's way to ask, for which an answer that ends with an error after its first token would be a success."""

    async def asked(request_func_input: Any, **others: Any) -> Any:
        answer = await ask(request_func_input=request_func_input, **others)
        if answer.success and answer.output_tokens != request_func_input.output_len:
            answer.success = False
            expected, told = request_func_input.output_len, answer.output_tokens
            answer.error = f"the answer broke off: expected {expected} tokens, told {told}"
        return answer

    return asked


def main() -> None:
    """Read runs from stdin until it closes. What vLLM prints goes to stderr."""
    import asyncio

    from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    ASYNC_REQUEST_FUNCS[BACKEND] = only_whole(ASYNC_REQUEST_FUNCS[BACKEND])
    results, sys.stdout = sys.stdout, sys.stderr
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    for line in sys.stdin:
        run = Run(**json.loads(line))
        os.environ["OPENAI_API_KEY"] = os.environ[KEY_VARIABLE + run.way.upper()]
        arguments = {
            "backend": BACKEND,
            "endpoint": "/v1/chat/completions",
            "base-url": run.address,
            "model": run.model,
            "tokenizer": run.tokenizer,
            "dataset-name": "custom",
            "dataset-path": run.prompts,
            "custom-output-len": run.answer_tokens,
            "max-concurrency": run.users,
            "num-prompts": run.requests,
            "num-warmups": run.users,  # opens the connections; not measured
            "seed": run.seed,
            "percentile-metrics": ",".join(MEASURES),
            "metric-percentiles": ",".join(map(str, PERCENTILES)),
            "temperature": 0,
        }
        # the server applies the chat template; an answer ends at its length, so that all runs do the same work
        switches = ["--skip-chat-template", "--ignore-eos", "--save-detailed", "--disable-tqdm"]
        switches += ["--insecure"] if run.address.startswith("https://127.0.0.1") else []
        options = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
        result = asyncio.run(main_async(parser.parse_args([*options, *switches])))
        error = next((lines[-1] for text in result["errors"] if (lines := text.strip().splitlines())), "")
        print(json.dumps({name: result[name] for name in FIGURES} | {"error": error}), file=results, flush=True)


if __name__ == "__main__":
    main()
