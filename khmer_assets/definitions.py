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
from jobs.stages import adapter_job, clean_up_job, deploy_adapter_job, deploy_job, retire_adapter_job, stage_jobs
from khmer_assets.adapters.assets import adapter_assets
from khmer_assets.compression.assets import compression_assets
from khmer_assets.compression.variants import TRANSFORMERS_VARIANTS
from khmer_assets.corpus.assets import corpus_assets
from khmer_assets.evaluation.assets import evaluation_assets
from khmer_assets.finetuning.assets import finetuning_assets
from khmer_assets.foundation.home import home
from khmer_assets.instructions.assets import instruction_assets
from khmer_assets.load.assets import load_assets
from khmer_assets.pretraining.assets import pretraining_assets
from khmer_assets.recipe import Recipe
from khmer_assets.release.assets import release_assets
from khmer_assets.release.deployment import model_server
from khmer_assets.tokenizer.assets import tokenizer_assets
from resources.batches import RAY_VARIABLE, Batches
from resources.compute import Compute
from resources.console_logger import terminal_logger
from resources.instance import STEPS
from resources.storage import FoldersIOManager, FramesIOManager, store_root
from resources.tracking import EXPERIMENT, mlflow_tracking, tracking_uri
from resources.vector_index import VectorIndex
from sensors.redeploy import keep_serving_sensor, redeploy_sensor

for category in (dg.BetaWarning, dg.PreviewWarning):
    warnings.filterwarnings("ignore", category=category)


def assets_by_stage(recipe: Recipe) -> dict[str, list[Any]]:
    """Each stage's assets and checks, made of the parts of the recipe that the stage reads."""
    context_length, precision = recipe.pretraining.context_length, recipe.pretraining.precision
    return {
        "corpus": corpus_assets(
            recipe.catalogue,
            recipe.sources,
            recipe.normalization,
            recipe.filters,
            recipe.decontamination,
            recipe.deduplication,
            recipe.mixture,
            recipe.seed,
        ),
        "tokenizer": tokenizer_assets(recipe.tokenizer),
        "pretraining": pretraining_assets(recipe.pretraining, recipe.evaluation.max_documents, recipe.seed),
        "instructions": instruction_assets(
            recipe.instructions, recipe.decontamination, recipe.catalogue.parent, recipe.normalization, recipe.seed
        ),
        "finetuning": finetuning_assets(recipe.finetuning, precision, context_length, recipe.seed),
        "compression": compression_assets(recipe.compression, recipe.seed),
        "evaluation": evaluation_assets(
            recipe.name, recipe.evaluation, TRANSFORMERS_VARIANTS, recipe.compression.gguf, context_length
        ),
        "release": release_assets(
            recipe.model_dump(mode="json", exclude={"catalogue", "history"}),
            [source.model_dump(mode="json") for source in recipe.sources.values()],
            recipe.release,
            recipe.serving,
            bool(recipe.adapters),
            recipe.evaluation.max_new_tokens,
        ),
        "adapters": adapter_assets(
            recipe.adapters,
            recipe.normalization,
            recipe.instructions,
            recipe.decontamination,
            recipe.catalogue.parent,
            recipe.evaluation,
            precision,
            context_length,
            recipe.seed,
        ),
        "load": load_assets(
            recipe.serving.benchmark, recipe.serving.tuning, recipe.serving.max_model_length, recipe.seed
        ),
    }


def build_definitions(
    recipe: Recipe, state: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """The graph of one recipe, keeping its state in the folder `state`; `overrides` replaces resources by key."""
    state = state or home()
    parts = [part for stage in assets_by_stage(recipe).values() for part in stage]
    checks = [part for part in parts if isinstance(part, dg.AssetChecksDefinition)]
    deploy = deploy_job()
    jobs: list[Any] = [*stage_jobs(), deploy, clean_up_job(recipe.history, state)]
    sensors = [redeploy_sensor("redeploy", "release", deploy), keep_serving_sensor()]
    if recipe.adapters:
        deploy_adapter = deploy_adapter_job()
        jobs += [adapter_job(), deploy_adapter, retire_adapter_job([adapter.name for adapter in recipe.adapters])]
        sensors.append(redeploy_sensor("redeploy_adapter", "adapter_release", deploy_adapter))
    storage = {"root": store_root(state), "cache": str(state / "cache")}
    return dg.Definitions(
        assets=[part for part in parts if part not in checks],
        asset_checks=checks,
        resources={
            "frames": FramesIOManager(**storage),
            "folders": FoldersIOManager(**storage),
            "compute": Compute(home=str(state)),
            "batches": Batches(home=str(state), ray_address=os.environ.get(RAY_VARIABLE, "")),
            "mlflow": mlflow_tracking.configured(
                {
                    "experiment_name": EXPERIMENT,
                    "mlflow_tracking_uri": tracking_uri(state),
                    "artifacts": str(state / "mlflow"),
                }
            ),
            "vector_index": VectorIndex(path=str(state / "lancedb")),
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
