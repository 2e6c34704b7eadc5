"""The assets of the finetuning stage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.finetuning import merge, runs, sft
from khmer_assets.finetuning.runs import FinetuningRuns
from khmer_assets.foundation.settings import code_version
from khmer_assets.training.alarms import alarmed
from resources.compute import Compute
from resources.instance import GPU_POOL
from resources.tracking import tracked_run

MERGE_TEXTS = 8


def finetuning_assets(settings: FinetuningRuns, base: str, texts: str, context_length: int, seed: int) -> list[Any]:
    """sft_adapter, merged_model and, where the recipe has several runs, best_adapter between them.

    `base` is the asset of the model that is finetuned, `texts` that of the texts on which the merge is measured;
    `context_length` (tokens) bounds the chats.
    """
    partitions = dg.StaticPartitionsDefinition(list(settings.runs)) if settings.runs else None
    replayed = {"packed": dg.AssetIn("packed_dataset")} if settings.replays else {}
    bases = {asset: dg.AssetIn(asset) for asset in map(runs.base_asset, settings.bases)}
    common: dict[str, Any] = {"group_name": "finetuning", "io_manager_key": "folders", "kinds": {"huggingface"}}

    @dg.asset(
        **common,
        pool=GPU_POOL,
        partitions_def=partitions,
        ins={"base": dg.AssetIn(base), **replayed, **bases},
        code_version=f"{code_version(3, finetuning=settings, seed=seed)}-{context_length}",
    )
    def sft_adapter(
        context: dg.AssetExecutionContext,
        compute: Compute,
        mlflow: dg.ResourceParam[Any],
        base: Path,
        chat_dataset: Path,
        **others: Path,
    ) -> Iterator[dg.Output[Path]]:
        """A peft folder: a LoRA adapter trained on the answers of the chats; `training.json` holds the loss curve."""
        name = context.partition_key if settings.runs else None
        spec = sft.Spec(
            base=others.get(runs.base_asset(name), base) if name else base,
            chats=chat_dataset,
            packed=others.get("packed"),
            settings=settings.of(name),
            context_length=context_length,
            seed=seed,
        )
        with tracked_run(mlflow, context) as env:
            yield from compute.materialize(context, sft.__name__, spec, env)

    @dg.asset_check(asset="sft_adapter", partitions_def=partitions)
    def training_raised_no_alarm(sft_adapter: Path) -> dg.AssetCheckResult:
        """Nothing in the training's course needs to be looked at (`khmer_assets/training/alarms.py`)."""
        return dg.AssetCheckResult(severity=dg.AssetCheckSeverity.WARN, **alarmed(sft_adapter))

    @dg.asset(**common, code_version="2")
    def best_adapter(
        context: dg.AssetExecutionContext, compute: Compute, sft_adapter: dict[str, Path]
    ) -> Iterator[dg.Output[Path]]:
        """The adapter of the run with the fewest validation bits a character; `runs.json` compares all runs."""
        yield from compute.materialize(context, runs.__name__, runs.Spec(adapters=sft_adapter))

    @dg.asset(
        **common,
        pool=GPU_POOL,
        ins={
            "base": dg.AssetIn(base),
            "adapter": dg.AssetIn("best_adapter" if settings.runs else "sft_adapter"),
            "texts": dg.AssetIn(texts),
            **bases,
        },
        code_version="2",
    )
    def merged_model(
        context: dg.AssetExecutionContext, compute: Compute, base: Path, adapter: Path, texts: Path, **others: Path
    ) -> Iterator[dg.Output[Path]]:
        """A transformers folder in bfloat16: base and adapter in one; `merge.json` tells how equal they are."""
        base = runs.base_of(adapter, base, others)
        spec = merge.Spec(base=base, adapter=adapter, texts=texts, samples=MERGE_TEXTS)
        yield from compute.materialize(context, merge.__name__, spec)

    @dg.asset_check(asset="merged_model", blocking=True)
    def merge_is_lossless(merged_model: Path) -> dg.AssetCheckResult:
        """The merged model gives what base and adapter give, within the rounding of the numbers that it is kept in."""
        figures = json.loads((merged_model / "merge.json").read_text())
        return dg.AssetCheckResult(passed=bool(figures["equal"]), metadata=figures)

    return [
        sft_adapter,
        training_raised_no_alarm,
        *([best_adapter] if settings.runs else []),
        merged_model,
        merge_is_lossless,
    ]
