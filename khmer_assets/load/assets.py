"""The assets that tell what load the server bears: the log of its use, and on demand the benchmark and the tuning."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.foundation.settings import code_version
from khmer_assets.load import serving_benchmark as benchmark
from khmer_assets.load import serving_tuning as tuning
from khmer_assets.load import usage
from resources.compute import Compute
from resources.instance import GPU_POOL, ON_DEMAND
from resources.model_server import ModelServer
from resources.storage import MissingArtifact
from resources.tracking import tracked_run


def load_assets(
    benchmark_settings: benchmark.ServingBenchmark,
    tuning_settings: tuning.ServingTuning,
    max_model_length: int,
    tokenizer: str,
    seed: int,
) -> list[Any]:
    """audit_log, serving_benchmark with its check, and serving_tuning; `max_model_length` is in tokens, `tokenizer` the
    asset of the served model's."""
    on_demand: dict[str, Any] = {
        "group_name": "serving",
        "io_manager_key": "folders",
        "kinds": {"vllm"},
        "pool": GPU_POOL,
        "tags": ON_DEMAND,
    }

    def former(asset: str, folders: Any) -> Path | None:
        try:
            return Path(folders.store.current(asset))
        except MissingArtifact:
            return None

    @dg.asset(group_name="serving", io_manager_key="folders", kinds={"parquet"}, tags=ON_DEMAND, code_version="2")
    def audit_log(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model_server: ModelServer,
        folders: dg.ResourceParam[Any],
    ) -> Iterator[dg.Output[Path]]:
        """`<day>.parquet`, a row a request that the gateway has answered: time, key, model, release, texts, tokens,
        seconds; and `usage.md`. Materialize it again for newer requests.

        A record that cannot be read is a row with outcome `unreadable`.
        """
        records = Path(model_server.home) / "audit"
        spec = usage.Spec(records=records, former=former("audit_log", folders))
        yield from compute.materialize(context, usage.__name__, spec)

    @dg.asset(
        **on_demand,
        ins={"tokenizer": dg.AssetIn(tokenizer)},
        code_version=code_version(1, benchmark=benchmark_settings, seed=seed),
    )
    def serving_benchmark(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model_server: ModelServer,
        folders: dg.ResourceParam[Any],
        served_model: Path,
        chat_dataset: Path,
        tokenizer: Path,
    ) -> Iterator[dg.Output[Path]]:
        """`benchmark.json`, `benchmark.md` and plots: what users see of the served model, from one user to many."""
        yield from compute.materialize(
            context,
            benchmark.__name__,
            benchmark.Spec(
                server=Path(model_server.home) / "server",
                address=model_server.address,
                release=json.loads((served_model / "endpoint.json").read_text())["digest"],
                tokenizer=tokenizer,
                chats=chat_dataset,
                former=former("serving_benchmark", folders),
                settings=benchmark_settings,
                seed=seed,
            ),
        )

    @dg.asset_check(asset=serving_benchmark)
    def every_request_is_answered(serving_benchmark: Path) -> dg.AssetCheckResult:
        """No request of the benchmark failed, with however many users."""
        runs = json.loads((serving_benchmark / "benchmark.json").read_text())["runs"]
        failed = sum(run["failed"] for run in runs)
        answered = sum(run["completed"] for run in runs)
        return dg.AssetCheckResult(passed=failed == 0, metadata={"failed": failed, "answered": answered})

    @dg.asset(
        **on_demand, code_version=code_version(1, tuning=tuning_settings, max_model_length=max_model_length, seed=seed)
    )
    def serving_tuning(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model_server: ModelServer,
        mlflow: dg.ResourceParam[Any],
        release: Path,
        chat_dataset: Path,
    ) -> Iterator[dg.Output[Path]]:
        """`tuning.json`, `tuning.md` and a plot: vLLM's settings with the highest throughput under a limit of latency.

        The next deployment uses them.
        """
        spec = tuning.Spec(
            release=release,
            max_model_length=max_model_length,
            engine=model_server.engine,
            engines=Path(model_server.home) / "server" / "tuning",
            chats=chat_dataset,
            settings=tuning_settings,
            seed=seed,
        )
        with tracked_run(mlflow, context) as env, compute.run(context, tuning.__name__, spec, env) as folder:
            engine = json.loads((folder / "tuning.json").read_text())["engine"]
            yield dg.Output(folder)
            model_server.keep_tuned(engine)

    return [audit_log, serving_benchmark, every_request_is_answered, serving_tuning]
