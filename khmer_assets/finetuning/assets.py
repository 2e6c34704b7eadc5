"""The assets of the finetuning stage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.finetuning import merge, sft
from khmer_assets.finetuning.sft import Finetuning
from khmer_assets.foundation.settings import code_version
from khmer_assets.training.models import Precision
from resources.compute import Compute
from resources.instance import GPU_POOL
from resources.tracking import tracked_run

MERGE_TEXTS = 16


def finetuning_assets(settings: Finetuning, precision: Precision, context_length: int, seed: int) -> list[Any]:
    """sft_adapter and merged_model, with their checks."""

    @dg.asset(
        group_name="finetuning",
        io_manager_key="folders",
        kinds={"pytorch", "huggingface"},
        pool=GPU_POOL,
        code_version=code_version(2, finetuning=settings, seed=seed),
    )
    def sft_adapter(
        context: dg.AssetExecutionContext,
        compute: Compute,
        mlflow: dg.ResourceParam[Any],
        base_checkpoint: Path,
        chat_dataset: Path,
    ) -> Iterator[dg.Output[Path]]:
        """A peft folder: a LoRA adapter trained on the answers of the chats; `training.json` holds the loss curve."""
        spec = sft.Spec(
            base=base_checkpoint,
            chats=chat_dataset,
            new_to_chats=True,
            settings=settings,
            precision=precision,
            context_length=context_length,
            seed=seed,
        )
        with tracked_run(mlflow, context) as env:
            yield from compute.materialize(context, sft.__name__, spec, env)

    @dg.asset(group_name="finetuning", io_manager_key="folders", kinds={"huggingface"}, pool=GPU_POOL, code_version="1")
    def merged_model(
        context: dg.AssetExecutionContext,
        compute: Compute,
        base_checkpoint: Path,
        sft_adapter: Path,
        training_mixture: Path,
    ) -> Iterator[dg.Output[Path]]:
        """A transformers folder in bfloat16: base and adapter in one; `merge.json` tells how equal they are."""
        yield from compute.materialize(
            context,
            merge.__name__,
            merge.Spec(base=base_checkpoint, adapter=sft_adapter, texts=training_mixture, samples=MERGE_TEXTS),
        )

    @dg.asset_check(asset="merged_model", blocking=True)
    def merge_is_lossless(merged_model: Path) -> dg.AssetCheckResult:
        """The merged model gives what base and adapter give, within the rounding of the numbers that it is kept in."""
        figures = json.loads((merged_model / "merge.json").read_text())
        return dg.AssetCheckResult(passed=bool(figures["equal"]), metadata=figures)

    return [sft_adapter, merged_model, merge_is_lossless]
