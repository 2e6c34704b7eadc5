"""The assets of the serving stage: the release that passes every gate, its deployment, and the log of its use."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from khmer_assets.compression.assets import released_model
from khmer_assets.plots import as_markdown
from khmer_assets.recipe import Recipe, digest_of
from khmer_assets.serving import adapter_release as adapter_release_payload
from khmer_assets.serving import benchmark, tuning
from khmer_assets.serving import release as release_payload
from khmer_assets.serving.audit_log import figures, read_records
from khmer_assets.serving.client import ask
from resources import checks
from resources.compute import Compute
from resources.engines import Release
from resources.instance import ON_DEMAND
from resources.model_server import MODEL_NAME, ModelServer, ModelServerError, Say
from resources.storage import MissingArtifact
from resources.tracking import mark_served, tracked_run

ADAPTERS_A_STEP = 4  # that vLLM computes together; requests for more of them wait for each other
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as the largest


def model_server(recipe: Recipe, state: Path) -> ModelServer:
    """The model server that the recipe describes, with its state in the folder `state`."""
    serving = recipe.serving.model_dump(
        mode="json", exclude={"max_model_length", "question", "benchmark", "tuning"}, exclude_none=True
    )  # Dagster's configuration takes no null in a map
    if recipe.adapters:
        rank = max(adapter.finetuning.rank for adapter in recipe.adapters)
        room = {"enable_lora": True, "max_loras": ADAPTERS_A_STEP, "max_lora_rank": min(r for r in RANKS if r >= rank)}
        serving["engine"] = room | serving["engine"]
    return ModelServer(home=str(state), **serving)


def serving_assets(recipe: Recipe) -> list[Any]:
    """release, served_model, audit_log, those of adapters, and on demand serving_benchmark and serving_tuning."""
    deployed = recipe.serving.model_dump(mode="json", exclude={"benchmark", "tuning"})
    deployed["adapters"] = bool(recipe.adapters)  # engines are started with room for them
    on_demand: dict[str, Any] = {
        "group_name": "serving",
        "io_manager_key": "folders",
        "kinds": {"vllm"},
        "pool": "gpu",
        "code_version": recipe.version(1, "serving", "seed"),
        "tags": ON_DEMAND,
    }

    @dg.asset(
        group_name="serving",
        io_manager_key="folders",
        kinds={"huggingface"},
        ins={"model": released_model(recipe)},
        code_version=recipe.version(1, "release"),
    )
    def release(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model: Path,
        benchmark_report: Path,
        release_bundle: Path,
    ) -> dg.Output[Path]:
        """`model/` to be served and `release.json`. Refused while a blocking check of any asset upstream is not met."""
        require_checks(context)
        return compute.run(
            context,
            "khmer_assets.serving.release",
            release_payload.Spec(
                recipe=recipe.name,
                variant=recipe.release.variant,
                model=model,
                report=benchmark_report,
                bundle=release_bundle,
            ),
        )

    @dg.asset(
        group_name="serving",
        io_manager_key="folders",
        kinds={"vllm"},
        code_version=f"1-{digest_of(deployed)[:12]}",
    )
    def served_model(context: dg.AssetExecutionContext, model_server: ModelServer, release: Path) -> Path:
        """`endpoint.json`: address, model names and digest of what is served. The key is not in it."""
        try:
            seconds = deploy(model_server, release, recipe, context.log.info)
            figures = json.loads((release / "release.json").read_text())["figures"]
            mark_served(Path(model_server.home), MODEL_NAME, release.name, release / "model", figures)
            answer = ask(
                recipe.serving.question,
                model_server.base_url,
                model_server.api_key(),
                max_tokens=recipe.evaluation.max_new_tokens,
            )
        except ModelServerError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        context.add_output_metadata(
            {
                "address": dg.MetadataValue.url(model_server.base_url),
                "served_digest": release.name,
                "question": recipe.serving.question,
                "answer": answer,
                "seconds_to_healthy": round(seconds, 1),
            }
        )
        names = Release(digest=release.name, max_model_length=recipe.serving.max_model_length).names
        return _endpoint(model_server, release.name, names)  # without the adapters, which come and go

    @dg.asset(group_name="serving", io_manager_key="frames", kinds={"parquet"}, code_version="1")
    def audit_log(context: dg.AssetExecutionContext, model_server: ModelServer) -> pl.LazyFrame:
        """A row a request that the gateway has answered: time, day, key, model, release, texts, tokens, seconds.

        Materialize it again for newer requests. A record that cannot be read is a row with outcome `unreadable`.
        """
        log = read_records(Path(model_server.home) / "audit")
        if (rows := log.collect()).height:
            pictures = {name: dg.MetadataValue.md(as_markdown(figure)) for name, figure in figures(rows).items()}
            context.add_output_metadata(pictures)
        return log

    @dg.asset(**on_demand)
    def serving_benchmark(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model_server: ModelServer,
        folders: dg.ResourceParam[Any],
        served_model: Path,
        chat_dataset: Path,
        tokenizer: Path,
    ) -> dg.Output[Path]:
        """`benchmark.json`, `benchmark.md` and plots: what users see of the served model, from one user to many."""
        try:
            former = folders.store.current("serving_benchmark")
        except MissingArtifact:
            former = None
        return compute.run(
            context,
            "khmer_assets.serving.benchmark",
            benchmark.Spec(
                server=Path(model_server.home) / "server",
                address=model_server.address,
                release=json.loads((served_model / "endpoint.json").read_text())["digest"],
                tokenizer=tokenizer,
                chats=chat_dataset,
                former=former,
                settings=recipe.serving.benchmark,
                seed=recipe.seed,
            ),
        )

    @dg.asset_check(asset=serving_benchmark)
    def every_request_is_answered(serving_benchmark: Path) -> dg.AssetCheckResult:
        """No request of the benchmark failed, with however many users."""
        runs = json.loads((serving_benchmark / "benchmark.json").read_text())["runs"]
        failed = sum(run["failed"] for run in runs)
        answered = sum(run["completed"] for run in runs)
        return dg.AssetCheckResult(passed=failed == 0, metadata={"failed": failed, "answered": answered})

    @dg.asset(**on_demand)
    def serving_tuning(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model_server: ModelServer,
        mlflow: dg.ResourceParam[Any],
        release: Path,
        chat_dataset: Path,
    ) -> dg.Output[Path]:
        """`tuning.json`, `tuning.md` and a plot: vLLM's settings with the highest throughput under a limit of latency.

        The next deployment uses them.
        """
        with tracked_run(mlflow, context) as env:
            found = compute.run(
                context,
                "khmer_assets.serving.tuning",
                tuning.Spec(
                    release=release,
                    max_model_length=recipe.serving.max_model_length,
                    engine=model_server.engine,
                    engines=Path(model_server.home) / "server" / "tuning",
                    chats=chat_dataset,
                    settings=recipe.serving.tuning,
                    seed=recipe.seed,
                ),
                env=env,
            )
        model_server.keep_tuned(json.loads((found.value / "tuning.json").read_text())["engine"])
        return found

    measured = [serving_benchmark, every_request_is_answered, serving_tuning]
    return [release, served_model, audit_log, *measured, *(adapter_serving_assets(recipe) if recipe.adapters else [])]


def adapter_serving_assets(recipe: Recipe) -> list[Any]:
    """adapter_release and served_adapter."""
    common: dict[str, Any] = {
        "group_name": "serving",
        "io_manager_key": "folders",
        "partitions_def": dg.StaticPartitionsDefinition([adapter.name for adapter in recipe.adapters]),
    }

    @dg.asset(**common, kinds={"huggingface"}, code_version="1")
    def adapter_release(
        context: dg.AssetExecutionContext,
        compute: Compute,
        domain_adapter: Path,
        adapter_evaluation: Path,
    ) -> dg.Output[Path]:
        """`adapter/` to be served and `release.json`. Refused while a blocking check upstream is not met."""
        require_checks(context)
        return compute.run(
            context,
            adapter_release_payload.__name__,
            adapter_release_payload.Spec(
                name=context.partition_key,
                adapter=domain_adapter,
                evaluation=adapter_evaluation,
            ),
        )

    # The sensor makes it; `make run` only loads the adapter, for both at once would each find the other's inputs newer.
    @dg.asset(**common, kinds={"vllm"}, deps=["served_model"], code_version="1", tags=ON_DEMAND)
    def served_adapter(context: dg.AssetExecutionContext, model_server: ModelServer, adapter_release: Path) -> Path:
        """`endpoint.json`: address and names under which the served model answers with this adapter."""
        name = context.partition_key
        try:
            seconds = load_adapter(model_server, adapter_release, context.log.info)
            figures = json.loads((adapter_release / "release.json").read_text())["figures"]
            folder, home = adapter_release / "adapter", Path(model_server.home)
            mark_served(home, f"{MODEL_NAME}-{name}", adapter_release.name, folder, figures)
            question = recipe.adapter(name).question
            answer = ask(
                question,
                model_server.base_url,
                model_server.api_key(),
                model=f"{MODEL_NAME}-{name}",
                max_tokens=recipe.evaluation.max_new_tokens,
            )
        except ModelServerError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        context.add_output_metadata(
            {
                "address": dg.MetadataValue.url(model_server.base_url),
                "question": question,
                "answer": answer,
                "seconds_to_load": round(seconds, 2),
            }
        )
        (served,) = (adapter for adapter in model_server.adapters() if adapter.name == name)
        return _endpoint(model_server, served.digest, served.names)

    return [adapter_release, served_adapter]


def deploy(server: ModelServer, release: Path, recipe: Recipe, say: Say = print) -> float:
    """Serve a version of `release`; return the seconds until it answered. Raises `ModelServerError`."""
    base = json.loads((release / "release.json").read_text())["base"]
    return server.deploy(release / "model", release.name, recipe.serving.max_model_length, base, say)


def load_adapter(server: ModelServer, release: Path, say: Say = print) -> float:
    """Serve a version of `adapter_release`; return the seconds that it took. Raises `ModelServerError`."""
    record = json.loads((release / "release.json").read_text())
    return server.load_adapter(release / "adapter", record["name"], release.name, record["base"], say)


def _endpoint(server: ModelServer, digest: str, names: tuple[str, ...]) -> Path:
    folder = Path(server.home) / "server" / f"endpoint-{digest}"
    folder.mkdir(exist_ok=True)
    endpoint = {"address": server.base_url, "digest": digest, "models": list(names)}
    (folder / "endpoint.json").write_text(json.dumps(endpoint, indent=1))
    return folder


def require_checks(context: dg.AssetExecutionContext) -> None:
    """Raise `dg.Failure` while a blocking check upstream is not met."""
    graph = context.job_def.asset_layer.asset_graph.source_asset_graph  # whole, though the job may be a part of it
    partition = context.partition_key if context.has_partition_key else None
    if unmet := unmet_checks(context.instance, graph, context.asset_key, partition):
        raise dg.Failure(
            "no release, for these blocking checks are not met:\n"
            + "\n".join(f"- {line}" for line in unmet)
            + "\nmaterialize those assets together with their checks, and then the release",
            allow_retries=False,
        )


def unmet_checks(
    instance: dg.DagsterInstance, graph: AssetGraph, asset: dg.AssetKey, partition: str | None = None
) -> list[str]:
    """Why `asset` may not be made yet: a line a blocking check upstream that fails or has not judged the newest.

    A check of an asset with the same partitions must hold for `partition`, one of an asset with others for every
    partition that has been materialized.
    """
    own = graph.get(asset).partitions_def
    lines = []
    for upstream in sorted(graph.get_ancestor_asset_keys(asset)):
        name = upstream.to_user_string()
        alike = own is not None and graph.get(upstream).partitions_def == own
        for check in checks.blocking_checks(graph, upstream):
            for judged in [partition] if alike else checks.partitions_of(graph, upstream):
                if reason := checks.unmet(instance, check, judged):
                    lines.append(f"{name} ({judged}): {reason}" if judged else f"{name}: {reason}")
    return lines
