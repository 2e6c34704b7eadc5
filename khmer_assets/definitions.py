"""The whole graph assembled: every stage's assets and checks, the resources, jobs, schedules and sensors.

Nothing is defined here. `dagster` loads `defs`; tests build their own with `build_definitions`.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from jobs.schedules import all_schedules
from jobs.stages import (
    adapter_job,
    clean_up_job,
    deploy_adapter_job,
    deploy_job,
    deploy_router_job,
    failure_job,
    retire_adapter_job,
    router_job,
    stage_jobs,
)
from khmer_assets.adapters.assets import adapter_assets
from khmer_assets.base_model.assets import base_model_assets
from khmer_assets.compression.assets import compression_assets
from khmer_assets.corpus.assets import corpus_assets, evaluation_files
from khmer_assets.evaluation.assets import evaluation_assets
from khmer_assets.extension.assets import extension_assets
from khmer_assets.failures.assets import JOB_ASSETS, NAMES, failure_assets
from khmer_assets.failures.find import NAME as FAILURES
from khmer_assets.finetuning.assets import finetuning_assets
from khmer_assets.finetuning.runs import base_asset
from khmer_assets.foundation.home import home
from khmer_assets.instructions.assets import instruction_assets
from khmer_assets.labels.assets import label_assets
from khmer_assets.load.assets import load_assets
from khmer_assets.pretraining.assets import pretraining_assets
from khmer_assets.recipe import Recipe
from khmer_assets.release.assets import release_assets
from khmer_assets.release.deployment import model_server
from khmer_assets.router.assets import router_assets
from khmer_assets.tokenizer.assets import tokenizer_assets
from resources.batches import RAY_VARIABLE, Batches
from resources.compute import LAUNCH_VARIABLE, Compute
from resources.console_logger import terminal_logger
from resources.instance import STEPS
from resources.storage import FoldersIOManager, FramesIOManager, store_root
from resources.teachers import Teachers
from resources.tracking import EXPERIMENT, mlflow_tracking, tracking_uri
from resources.vector_index import VectorIndex
from sensors.redeploy import keep_serving_sensor, redeploy_sensor

for category in (dg.BetaWarning, dg.PreviewWarning):
    warnings.filterwarnings("ignore", category=category)


def assets_by_stage(recipe: Recipe) -> dict[str, list[Any]]:
    """Each stage's assets and checks, made of the parts of the recipe that the stage reads; what the recipe has no part
    for is left out."""
    texts = "training_mixture" if recipe.catalogue else "chat_texts"
    tokenizer = "tokenizer" if recipe.tokenizer else "extended_tokenizer" if recipe.extension else "base_model"
    start = "extended_model" if recipe.extension else "base_model" if recipe.base else None
    trained = "base_checkpoint" if recipe.pretraining else "base_model"
    whole = "merged_model" if recipe.finetuning else trained
    tokenizer_of_whole = tokenizer
    stages: dict[str, list[Any]] = {"corpus": [evaluation_files(recipe.decontamination, recipe.folder)]}
    if recipe.catalogue:
        stages["corpus"] += corpus_assets(
            recipe.catalogue,
            recipe.sources,
            recipe.normalization,
            recipe.filters,
            recipe.decontamination,
            recipe.deduplication,
            recipe.mixture,
            "labelled_corpus" if recipe.labels and recipe.labels.in_mixture else "deduplicated_corpus",
            tokenizer,
            recipe.seed,
        )
    if recipe.labels:
        stages["labels"] = label_assets(
            recipe.labels,
            recipe.teachers,
            list(recipe.sources),
            recipe.seed,
            recipe.instructions.min_quality is not None,
        )
    if recipe.tokenizer:
        stages["tokenizer"] = tokenizer_assets(recipe.tokenizer)
    if recipe.base:
        stages["base_model"] = base_model_assets(recipe.base)
        for name, other in recipe.finetuning.bases.items() if recipe.finetuning else ():
            stages["base_model"] += base_model_assets(other, base_asset(name))
            tokenizer_of_whole = whole  # which of the bases' it is, is seen when all are trained
    if recipe.extension:
        stages["extension"] = extension_assets(recipe.extension, recipe.evaluation.max_documents)
    if recipe.pretraining:
        stages["pretraining"] = pretraining_assets(
            recipe.pretraining, start, tokenizer, recipe.evaluation.max_documents, recipe.seed
        )
    stages["instructions"] = instruction_assets(
        recipe.instructions,
        recipe.decontamination,
        recipe.folder,
        recipe.normalization,
        recipe.catalogue is None,
        recipe.seed,
        recipe.teachers,
        recipe.labels is not None,
    )
    if recipe.finetuning:
        stages["finetuning"] = finetuning_assets(recipe.finetuning, trained, texts, recipe.context_length, recipe.seed)
    stages["compression"] = compression_assets(
        recipe.compression, recipe.variants, whole, texts, recipe.base is not None, recipe.seed
    )
    stages["evaluation"] = evaluation_assets(
        recipe.name,
        recipe.evaluation,
        recipe.variants,
        whole,
        tokenizer_of_whole,
        texts,
        recipe.context_length,
        recipe.teachers,
    )
    stages["release"] = release_assets(
        recipe.model_dump(mode="json", exclude={"catalogue", "history", "teachers", "failures", "router"})
        | {"context_length": recipe.context_length},
        [source.model_dump(mode="json") for source in recipe.sources.values()],
        recipe.release,
        whole,
        recipe.base is not None,
        recipe.serving,
        bool(recipe.adapter_names),
        recipe.evaluation.max_new_tokens,
    )
    stages["adapters"] = adapter_assets(
        recipe.adapters,
        recipe.normalization,
        recipe.instructions.split,
        recipe.decontamination,
        recipe.folder,
        recipe.evaluation,
        whole,
        recipe.context_length,
        recipe.seed,
    )
    stages["router"] = router_assets(
        recipe.router,
        recipe.stronger,
        whole,
        {FAILURES: (NAMES.adapter, NAMES.chats)} if recipe.failures else {},
        recipe.context_length,
        max([recipe.evaluation.max_new_tokens, *(adapter.max_new_tokens or 0 for adapter in recipe.adapters)]),
        recipe.seed,
    )
    stages["failures"] = failure_assets(
        recipe.failures,
        recipe.instructions,
        recipe.normalization,
        recipe.decontamination,
        recipe.deduplication,
        recipe.folder,
        recipe.evaluation,
        whole,
        f"{recipe.variants[0]}_evaluation",
        recipe.context_length,
        recipe.seed,
    )
    stages["load"] = load_assets(
        recipe.serving.benchmark,
        recipe.serving.tuning,
        recipe.serving.max_model_length,
        tokenizer_of_whole,
        recipe.seed,
    )
    return stages


def build_definitions(
    recipe: Recipe, state: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """The graph of one recipe, keeping its state in the folder `state`; `overrides` replaces resources by key."""
    state = state or home()
    parts = [part for stage in assets_by_stage(recipe).values() for part in stage]
    checks = [part for part in parts if isinstance(part, dg.AssetChecksDefinition)]
    deploy = deploy_job()
    made = [part for part in parts if isinstance(part, dg.AssetsDefinition) and part not in checks]
    names = {key.to_user_string() for part in made for key in part.keys}
    jobs: list[Any] = [*stage_jobs(names), deploy, clean_up_job(recipe.history, state)]
    sensors = [redeploy_sensor("redeploy", "release", deploy), keep_serving_sensor()]
    if recipe.adapters:
        deploy_adapter = deploy_adapter_job()
        jobs += [adapter_job(), deploy_adapter]
        sensors.append(redeploy_sensor("redeploy_adapter", "adapter_release", deploy_adapter, on_release=True))
    if recipe.failures:
        jobs.append(failure_job(JOB_ASSETS))
    if recipe.adapter_names:
        jobs.append(retire_adapter_job(recipe.adapter_names))
    if recipe.router:
        jobs += [router_job(), deploy_router := deploy_router_job()]
        sensors.append(redeploy_sensor("redeploy_router", "router", deploy_router, on_release=True))
    storage = {"root": store_root(state), "cache": str(state / "cache")}
    return dg.Definitions(
        assets=[part for part in parts if part not in checks],
        asset_checks=checks,
        resources={
            "frames": FramesIOManager(**storage),
            "folders": FoldersIOManager(**storage),
            "compute": Compute(home=str(state), launch=os.environ.get(LAUNCH_VARIABLE, "auto")),
            "batches": Batches(home=str(state), ray_address=os.environ.get(RAY_VARIABLE, "")),
            "mlflow": mlflow_tracking.configured(
                {
                    "experiment_name": EXPERIMENT,
                    "mlflow_tracking_uri": tracking_uri(state),
                    "artifacts": str(state / "mlflow"),
                }
            ),
            "vector_index": VectorIndex(path=str(state / "lancedb")),
            "teachers": Teachers(
                home=str(state),
                teachers=[teacher.model_dump(mode="json", exclude_none=True) for teacher in recipe.teachers],
            ),
            "model_server": model_server(recipe.serving, recipe.adapter_ranks, state),
            **(overrides or {}),
        },
        jobs=jobs,
        loggers={"console": terminal_logger},
        # a step is a fork of a process that knows the graph, else it loads it by itself, for seconds
        executor=dg.multiprocess_executor.configured(
            {"max_concurrent": STEPS, "start_method": {"forkserver": {"preload_modules": [__name__]}}}
        ),
        schedules=all_schedules(list(recipe.sources)),
        sensors=sensors,
    )


defs = build_definitions(Recipe.current())
