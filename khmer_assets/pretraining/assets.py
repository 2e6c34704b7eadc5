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
from khmer_assets.training.alarms import alarmed
from resources.compute import Compute
from resources.instance import GPU_POOL
from resources.tracking import tracked_run


def pretraining_assets(
    settings: Pretraining, base: str | None, tokenizer: str, max_documents: int, seed: int
) -> list[Any]:
    """packed_dataset and base_checkpoint and, where the recipe asks for it, pilot_checkpoint before, with their checks.

    `base` is the asset of the model that is trained on, None for a new one; `tokenizer` that of its tokenizer.
    `max_documents` held-out documents a language are scored at the end.
    """
    read_by = {"tokenizer": dg.AssetIn(tokenizer)}

    @dg.asset(
        group_name="pretraining",
        io_manager_key="folders",
        ins=read_by,
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

    def checkpoint(name: str, settings: Pretraining, deps: list[str]) -> dg.AssetsDefinition:
        @dg.asset(
            name=name,
            group_name="pretraining",
            io_manager_key="folders",
            kinds={"pytorch", "huggingface"},
            pool=GPU_POOL,
            deps=deps,
            ins={**read_by, **({"base": dg.AssetIn(base)} if base else {})},
            code_version=f"{code_version(2, pretraining=settings, seed=seed)}-{max_documents}",
        )
        def trained(
            context: dg.AssetExecutionContext,
            compute: Compute,
            mlflow: dg.ResourceParam[Any],
            packed_dataset: Path,
            tokenizer: Path,
            training_mixture: Path,
            **others: Path,
        ) -> Iterator[dg.Output[Path]]:
            """A transformers folder: the pretrained decoder and its tokenizer; `training.json` holds the loss curve.

            A run that is stopped goes on from its last checkpoint.
            """
            spec = train.Spec(
                packed=packed_dataset,
                tokenizer=tokenizer,
                mixture=training_mixture,
                base=others.get("base"),
                settings=settings,
                seed=seed,
                max_documents=max_documents,
            )
            with tracked_run(mlflow, context) as env:
                yield from compute.materialize(context, train.__name__, spec, env)

        return trained

    def converged(name: str, asset: str) -> dg.AssetChecksDefinition:
        @dg.asset_check(name=name, asset=asset, blocking=True)
        def training_converged(checkpoint: Path) -> dg.AssetCheckResult:
            """The loss fell, and the held-out text is predicted better than by guessing among all tokens. Text that
            could not be scored is a warning: the evaluations of the variants measure it again before a release."""
            return judged(checkpoint)

        return training_converged

    @dg.asset_check(asset="base_checkpoint")
    def training_raised_no_alarm(base_checkpoint: Path) -> dg.AssetCheckResult:
        """Nothing in the training's course needs to be looked at (`khmer_assets/training/alarms.py`)."""
        return dg.AssetCheckResult(severity=dg.AssetCheckSeverity.WARN, **alarmed(base_checkpoint))

    whole = settings.model_copy(update={"pilot": None})
    if settings.pilot is None:
        trained = checkpoint("base_checkpoint", whole, [])
        return [packed_dataset, trained, converged("training_converged", "base_checkpoint"), training_raised_no_alarm]
    pilot = whole.model_copy(update={"steps": max(1, math.ceil(settings.pilot * settings.steps))})
    return [
        packed_dataset,
        checkpoint("pilot_checkpoint", pilot, []),
        converged("pilot_converged", "pilot_checkpoint"),
        checkpoint("base_checkpoint", whole, ["pilot_checkpoint"]),
        converged("training_converged", "base_checkpoint"),
        training_raised_no_alarm,
    ]


def judged(checkpoint: Path) -> dg.AssetCheckResult:
    """Whether a training has taught its model something; see the check `training_converged`."""
    training = json.loads((checkpoint / "training.json").read_text())
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
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
