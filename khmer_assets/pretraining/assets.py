"""The assets of the pretraining stage."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.foundation.settings import code_version
from khmer_assets.pretraining import packing, train
from khmer_assets.pretraining.train import Pretraining
from resources.compute import Compute
from resources.instance import GPU_POOL
from resources.tracking import tracked_run


def pretraining_assets(settings: Pretraining, max_documents: int, seed: int) -> list[Any]:
    """packed_dataset and base_checkpoint, with their checks.

    `max_documents` held-out documents a language are scored at the end.
    """

    @dg.asset(
        group_name="pretraining",
        io_manager_key="folders",
        code_version=f"{code_version(1, seed=seed)}-{settings.context_length}",
    )
    def packed_dataset(
        context: dg.AssetExecutionContext, compute: Compute, tokenizer: Path, training_mixture: Path
    ) -> Iterator[dg.Output[Path]]:
        """`train.bin`: the train split as one stream of uint32 token ids, documents parted by the end-of-text token."""
        yield from compute.materialize(
            context,
            packing.__name__,
            packing.Spec(
                mixture=training_mixture,
                tokenizer=tokenizer,
                context_length=settings.context_length,
                seed=seed,
            ),
        )

    @dg.asset(
        group_name="pretraining",
        io_manager_key="folders",
        kinds={"pytorch", "huggingface"},
        pool=GPU_POOL,
        code_version=f"{code_version(1, pretraining=settings, seed=seed)}-{max_documents}",
    )
    def base_checkpoint(
        context: dg.AssetExecutionContext,
        compute: Compute,
        mlflow: dg.ResourceParam[Any],
        packed_dataset: Path,
        tokenizer: Path,
        training_mixture: Path,
    ) -> Iterator[dg.Output[Path]]:
        """A transformers folder: the pretrained decoder and its tokenizer; `training.json` holds the loss curve.

        A run that is stopped goes on from its last checkpoint.
        """
        with tracked_run(mlflow, context) as env:
            yield from compute.materialize(
                context,
                train.__name__,
                train.Spec(
                    packed=packed_dataset,
                    tokenizer=tokenizer,
                    mixture=training_mixture,
                    settings=settings,
                    seed=seed,
                    max_documents=max_documents,
                ),
                env,
            )

    @dg.asset_check(asset="base_checkpoint", blocking=True)
    def training_converged(base_checkpoint: Path) -> dg.AssetCheckResult:
        """The loss fell, and the held-out text is predicted better than by guessing among all tokens. Text that could
        not be scored is a warning: the evaluations of the variants measure it again before a release."""
        training = json.loads((base_checkpoint / "training.json").read_text())
        vocabulary = json.loads((base_checkpoint / "config.json").read_text())["vocab_size"]
        losses = [point["loss"] for point in training["curve"]]
        tenth = max(1, len(losses) // 10)
        first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
        perplexities = {language: q["perplexity"] for language, q in training["quality"].items()}
        learned = bool(last < first and all(p < vocabulary and math.isfinite(p) for p in perplexities.values()))
        not_scored = training.get("not_scored")
        return dg.AssetCheckResult(
            passed=learned and not_scored is None,
            severity=dg.AssetCheckSeverity.WARN if learned else dg.AssetCheckSeverity.ERROR,
            description=f"the held-out text could not be scored: {not_scored}" if not_scored else None,
            metadata={
                "first_loss": first,
                "last_loss": last,
                **{f"perplexity_{k}": v for k, v in perplexities.items()},
            },
        )

    return [packed_dataset, base_checkpoint, training_converged]
