"""The assets of the finetuning stage."""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.finetuning import merge, sft
from khmer_assets.recipe import Finetuning, Recipe, digest_of
from resources.compute import Compute
from resources.tracking import tracked_run

MERGE_TEXTS = 16


def finetuning_assets(recipe: Recipe) -> list[Any]:
    """sft_adapter and merged_model, with their checks, and the adapters of the recipe."""

    @dg.asset(
        group_name="finetuning",
        io_manager_key="folders",
        kinds={"pytorch", "huggingface"},
        pool="gpu",
        code_version=recipe.version(2, "finetuning", "seed"),
    )
    def sft_adapter(
        context: dg.AssetExecutionContext,
        compute: Compute,
        mlflow: dg.ResourceParam[Any],
        base_checkpoint: Path,
        chat_dataset: Path,
    ) -> dg.Output[Path]:
        """A peft folder: a LoRA adapter trained on the answers of the chats; `training.json` holds the loss curve."""
        settings = recipe.finetuning
        return train(context, compute, mlflow, recipe, base_checkpoint, chat_dataset, settings, new_to_chats=True)

    @dg.asset(group_name="finetuning", io_manager_key="folders", kinds={"huggingface"}, pool="gpu", code_version="1")
    def merged_model(
        context: dg.AssetExecutionContext,
        compute: Compute,
        base_checkpoint: Path,
        sft_adapter: Path,
        training_mixture: Path,
    ) -> dg.Output[Path]:
        """A transformers folder in bfloat16: base and adapter in one; `merge.json` tells how equal they are."""
        return compute.run(
            context,
            "khmer_assets.finetuning.merge",
            merge.Spec(base=base_checkpoint, adapter=sft_adapter, texts=training_mixture, samples=MERGE_TEXTS),
        )

    @dg.asset_check(asset="merged_model", blocking=True)
    def merge_is_lossless(merged_model: Path) -> dg.AssetCheckResult:
        """The merged model gives what base and adapter give, within the rounding of the numbers that it is kept in."""
        figures = json.loads((merged_model / "merge.json").read_text())
        return dg.AssetCheckResult(passed=bool(figures["equal"]), metadata=figures)

    return [sft_adapter, merged_model, merge_is_lossless, *(domain_adapter_assets(recipe) if recipe.adapters else [])]


def domain_adapter_assets(recipe: Recipe) -> list[Any]:
    """domain_adapter."""
    settings = digest_of([adapter.finetuning.model_dump() for adapter in recipe.adapters])[:12]

    @dg.asset(
        group_name="finetuning",
        io_manager_key="folders",
        kinds={"pytorch", "huggingface"},
        pool="gpu",
        partitions_def=dg.StaticPartitionsDefinition([adapter.name for adapter in recipe.adapters]),
        code_version=f"{recipe.version(1, 'seed')}-{settings}",
    )
    def domain_adapter(
        context: dg.AssetExecutionContext,
        compute: Compute,
        mlflow: dg.ResourceParam[Any],
        merged_model: Path,
        adapter_chats: Path,
    ) -> dg.Output[Path]:
        """A peft folder: a LoRA adapter of merged_model for one domain; `training.json` holds the loss curve."""
        settings = recipe.adapter(context.partition_key).finetuning
        return train(context, compute, mlflow, recipe, merged_model, adapter_chats, settings, new_to_chats=False)

    return [domain_adapter]


def train(
    context: dg.AssetExecutionContext,
    compute: Compute,
    mlflow: Any,
    recipe: Recipe,
    base: Path,
    chats: Path,
    settings: Finetuning,
    new_to_chats: bool,
) -> dg.Output[Path]:
    """Train a LoRA adapter of `base` on `chats`, tracked in MLflow."""
    spec = sft.Spec(
        base=base,
        chats=chats,
        new_to_chats=new_to_chats,
        settings=settings,
        precision=recipe.pretraining.precision,
        context_length=recipe.pretraining.context_length,
        seed=recipe.seed,
    )
    with tracked_run(mlflow, context) as env:
        return compute.run(context, sft.__name__, spec, env)
