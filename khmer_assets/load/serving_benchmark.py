"""The load benchmark: what users see of the served model, from one user to many, through the gateway and without it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Annotated, Any

import httpx
import polars as pl
from pydantic import BaseModel, Field

from khmer_assets.foundation import plots
from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.load.client import LoadClient, Run
from khmer_assets.server.keys import engine_key, secret
from khmer_assets.server.state import MODEL_NAME, ModelServerError, ServerState
from khmer_assets.server.vllm import vllm_environment
from resources.payload import PayloadRun, Refusal
from resources.storage import DATA


class ServingBenchmark(Settings):
    """Load on the served model: at each number of `users`, `requests` answers of `answer_tokens` tokens each.

    Users ask one question after the other; each asks two at least, however many they are.
    """

    users: Annotated[list[PositiveInt], Field(min_length=1)] = [1, 2, 4, 8, 16, 32, 64, 100]
    requests: PositiveInt = 200
    answer_tokens: PositiveInt = 128


WAYS = ("gateway", "direct")
MAX_PROMPTS = 500
LATENCIES = {
    "ttft": "time to the first token",
    "tpot": "time a token after the first",
    "itl": "time between two tokens",
    "e2el": "whole answer",
}


class Spec(BaseModel):
    """`server`: the model server's folder; `release`: the digest that must be served; `former`: the last benchmark.

    `tokenizer` and `chats` are folders, `address` is the gateway's.
    """

    server: Path
    address: str
    release: str
    tokenizer: Path
    chats: Path
    former: Path | None
    settings: ServingBenchmark
    seed: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `benchmark.json`, `benchmark.md` and two plots.

    Raises `Refusal` when another release is served than the one that was asked for, before or after the load.
    """
    state = served(spec)
    assert state.release is not None, "its digest was compared"
    python, on_cpu = vllm_python()
    settings, addresses = spec.settings, {"gateway": spec.address, "direct": f"http://127.0.0.1:{state.ports[0]}"}
    prompts = held_out_prompts(spec.chats, spec.tokenizer, state.release.max_model_length - settings.answer_tokens)
    file = write_prompts(prompts, run.state)
    keys = {"gateway": secret(spec.server / "api_key"), "direct": engine_key(spec.server)}
    rows: list[dict[str, Any]] = []
    with LoadClient(python, keys, run.state / "client.log") as client:

        def measured(way: str, users: int, requests: int) -> dict[str, Any]:
            result = client.measure(
                Run(
                    way=way,
                    address=addresses[way],
                    model=MODEL_NAME,
                    tokenizer=str(spec.tokenizer),
                    prompts=str(file),
                    users=users,
                    requests=requests,
                    answer_tokens=settings.answer_tokens,
                    seed=spec.seed,
                )
            )
            if not result["completed"]:
                raise Refusal(f"none of {requests} requests was answered ({way}, {users} users): {result['error']}")
            return result

        for way in WAYS:  # each prompt once, so that all that follows finds them equally cached
            run.log(f"warming up, {way}")
            measured(way, max(settings.users), len(prompts))
        for number, users in enumerate(settings.users):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                result = measured(way, users, max(settings.requests, 2 * users))
                rows.append({"users": users, "way": way, **result})
                run.log(
                    f"{users} users, {way}: {result['output_throughput']:,.0f} tokens/s, "
                    f"first token after {result['p50_ttft_ms']:,.0f} ms"
                )
    if ServerState.read(spec.server).release != state.release:
        raise Refusal("another release was deployed during the benchmark; run it again")
    report: dict[str, Any] = {
        "release": spec.release,
        "engine": state.release.engine,
        "engines": len(state.ports),
        "machine": {"cores": os.cpu_count(), "gpu": None if on_cpu else gpu_name()},
        "settings": settings.model_dump(),
        "prompts": len(prompts),
        "runs": sorted(rows, key=lambda row: (row["users"], WAYS.index(row["way"]))),
    }
    former = json.loads((spec.former / "benchmark.json").read_text()) if spec.former else None
    compared = compare(report, former) if former else None
    if former and compared is not None:
        report["compared_with"] = {"release": former["release"], "runs": compared.to_dicts()}
    (run.output / "benchmark.json").write_text(json.dumps(report, ensure_ascii=False, indent=1))
    figures = {"throughput": throughput_picture(report, former), "latency": latency_picture(report)}
    for name, figure in figures.items():
        figure.savefig(run.output / f"{name}.png", dpi=110)
    comparison = comparison_text(former, compared)
    (run.output / "benchmark.md").write_text(
        f"# Load on release {spec.release}\n\n{settings.answer_tokens} tokens an answer, {len(prompts)} Khmer prompts, "
        f"{os.cpu_count()} cores, {report['machine']['gpu'] or 'no GPU'}, {settings_of(report)}. Times in ms.\n\n"
        f"{markdown_table(table_of(report))}\n\n![](throughput.png)\n\n![](latency.png)\n\n"
        f"## Compared with the last benchmark\n\n{comparison}\n"
    )
    most = {row["way"]: row for row in report["runs"] if row["users"] == max(settings.users)}
    return {
        "tokens_per_second": most["gateway"]["output_throughput"],
        "throughput_of_direct": most["gateway"]["output_throughput"] / most["direct"]["output_throughput"],
        "failed_requests": sum(row["failed"] for row in report["runs"]),
        "table": markdown_table(table_of(report)),
        "comparison": comparison,
        **{f"{name}_plot": plots.as_markdown(figure) for name, figure in figures.items()},
    }


def vllm_python() -> tuple[Path, bool]:
    """`vllm_environment`, with `Refusal` where there is none, or one in which vLLM's benchmark client does not run."""
    try:
        python, on_cpu = vllm_environment()
    except ModelServerError as error:
        raise Refusal(str(error)) from None
    if subprocess.run([str(python), "-c", "import pandas"], capture_output=True, check=False).returncode:
        raise Refusal(
            f"{python} has no pandas, with which vLLM's benchmark client reads its prompts; run `make install`, "
            "or install pandas there"
        )
    return python, on_cpu


def served(spec: Spec) -> ServerState:
    """The state of the server. Raises `Refusal` unless it serves the release of `spec`."""
    try:
        # the certificate, where there is one, is for the name under which users know this machine
        health = httpx.get(f"{spec.address}/health", timeout=30, trust_env=False, verify=False).json()
    except (httpx.HTTPError, ValueError):
        raise Refusal(f"no model server answers at {spec.address}; start it with `make run`") from None
    state = ServerState.read(spec.server)
    found = state.release.digest if state.release else None
    if {found, health.get("release")} != {spec.release}:
        raise Refusal(
            f"the model server serves {health.get('release')}, expected {spec.release}, the newest served_model; "
            "materialize served_model, then the benchmark"
        )
    return state


def held_out_prompts(chats: Path, tokenizer: Path, limit: int) -> list[str]:
    """First questions of the Khmer test chats that have at most `limit` tokens, with the chat template around them.

    Raises `Refusal` when there is none.
    """
    from transformers import AutoTokenizer

    rows = pl.read_parquet(chats / DATA).filter(pl.col("split") == "test", pl.col("language") == "khm")
    asked = (next(m["content"] for m in messages if m["role"] == "user") for messages in rows["messages"].to_list())
    template = AutoTokenizer.from_pretrained(tokenizer).apply_chat_template
    prompts = [
        prompt
        for prompt in dict.fromkeys(asked)
        if len(template([{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False)) <= limit
    ]
    if not prompts:
        raise Refusal(
            f"{chats}: found no Khmer test chat whose question has at most {limit} tokens, so that "
            "the answer fits too; raise serving.max_model_length or lower answer_tokens in the recipe"
        )
    return prompts[:MAX_PROMPTS]


def write_prompts(prompts: list[str], folder: Path) -> Path:
    """The file that vLLM's client reads."""
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts))
    return file


def gpu_name() -> str:
    """The name of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.partition("\n")[0]


def table_of(report: dict[str, Any]) -> pl.DataFrame:
    """What people look at first: a row a number of users and way; benchmark.json has all percentiles."""
    columns = {
        "users": "users",
        "way": "way",
        "failed": "failed",
        "tokens/s": "output_throughput",
        "TTFT p50": "p50_ttft_ms",
        "TTFT p95": "p95_ttft_ms",
        "TTFT p99": "p99_ttft_ms",
        "TPOT p50": "p50_tpot_ms",
        "TPOT p95": "p95_tpot_ms",
        "ITL p50": "p50_itl_ms",
        "ITL p99": "p99_itl_ms",
        "E2E p50": "p50_e2el_ms",
        "E2E p95": "p95_e2el_ms",
    }
    return pl.DataFrame([{name: row[field] for name, field in columns.items()} for row in report["runs"]])


def compare(report: dict[str, Any], former: dict[str, Any]) -> pl.DataFrame | None:
    """Throughput and times beside those of another benchmark, with the change in %.

    None where the two asked for other answers, or on another machine, or share no number of users.
    """
    if former["machine"] != report["machine"]:
        return None
    if former["settings"]["answer_tokens"] != report["settings"]["answer_tokens"]:
        return None
    before = {(row["users"], row["way"]): row for row in former["runs"]}
    measures = {"tokens/s": "output_throughput", "TTFT p95": "p95_ttft_ms", "E2E p50": "p50_e2el_ms"}
    rows = []
    for row in report["runs"]:
        if old := before.get((row["users"], row["way"])):
            rows.append({"users": row["users"], "way": row["way"]})
            for name, field in measures.items():
                change = 100 * (row[field] / old[field] - 1)
                rows[-1] |= {f"{name} before": old[field], name: row[field], f"{name} change %": round(change, 1)}
    return pl.DataFrame(rows) if rows else None


def comparison_text(former: dict[str, Any] | None, compared: pl.DataFrame | None) -> str:
    """What the report says of the comparison."""
    if former is None:
        return "This is the first benchmark."
    if compared is None:
        return f"The last, of release {former['release']}, cannot be compared: its machine or settings were others."
    return f"The last was of release {former['release']}, {settings_of(former)}.\n\n{markdown_table(compared)}"


def settings_of(report: dict[str, Any]) -> str:
    """How vLLM was set."""
    return ", ".join(f"{name} {value}" for name, value in report["engine"].items()) or "vLLM's own settings"


def series(report: dict[str, Any], way: str, field: str) -> tuple[list[int], list[float]]:
    """Numbers of users, and a figure at each."""
    rows = [row for row in report["runs"] if row["way"] == way]
    return [row["users"] for row in rows], [row[field] for row in rows]


def throughput_picture(report: dict[str, Any], former: dict[str, Any] | None) -> Any:
    """Tokens a second by users."""
    figure = plots.new_figure()
    axes = figure.subplots()
    if former:
        label = f"gateway, last benchmark ({former['release'][:12]})"
        axes.plot(*series(former, "gateway", "output_throughput"), "o:", color="gray", label=label)
    for way in WAYS:
        axes.plot(*series(report, way, "output_throughput"), "o-", label=way)
    axes.set(title="Throughput", ylabel="tokens/s")
    _by_users(axes, report)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return figure


def latency_picture(report: dict[str, Any]) -> Any:
    """A plot a measure: percentiles through the gateway, and the median without it."""
    figure = plots.new_figure(9, 6)
    from matplotlib.ticker import LogFormatter  # 600 rather than 6 x 10^2

    for axes, (measure, title) in zip(figure.subplots(2, 2).flat, LATENCIES.items(), strict=True):
        for percentile, style in (("p50", "o-"), ("p95", "o--"), ("p99", "o:")):
            drawn = series(report, "gateway", f"{percentile}_{measure}_ms")
            axes.plot(*drawn, style, color="C0", markersize=4, label=f"gateway {percentile}")
        axes.plot(*series(report, "direct", f"p50_{measure}_ms"), "o-", color="C1", markersize=4, label="direct p50")
        axes.set(title=f"{measure.upper()}: {title}", ylabel="ms", yscale="log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
        _by_users(axes, report)
    axes.legend(fontsize=8)
    return figure


def _by_users(axes: Any, report: dict[str, Any]) -> None:
    users = report["settings"]["users"]
    axes.set_xscale("log", base=2)
    axes.set_xticks(users, map(str, users))
    axes.xaxis.minorticks_off()
    axes.set_xlabel("users at a time")
    axes.grid(alpha=0.3)
