"""The assets of the evaluation stage: one evaluation a variant, and the report that compares them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.evaluation import evaluate, report
from khmer_assets.foundation.settings import code_version
from resources.compute import Compute
from resources.instance import GPU_POOL


def evaluation_assets(
    recipe: str,
    settings: evaluate.Evaluation,
    variants: Sequence[str],
    quantizations: Sequence[str],
    context_length: int,
) -> list[Any]:
    """An evaluation of each variant, and benchmark_report; `recipe` is the name in its title."""
    partitions = dg.StaticPartitionsDefinition(list(quantizations))
    common: dict[str, Any] = {
        "group_name": "evaluation",
        "io_manager_key": "folders",
        "pool": GPU_POOL,
        "code_version": code_version(1, evaluation=settings),
        "description": "`evaluation.json`: quality, answers, size, memory and speed of this variant.",
    }

    def measure(
        context: dg.AssetExecutionContext, compute: Compute, variant: str, model: Path, *others: Path
    ) -> Iterator[dg.Output[Path]]:
        tokenizer, mixture, chats = others
        yield from compute.materialize(
            context,
            evaluate.__name__,
            evaluate.Spec(
                variant=variant,
                model=model,
                tokenizer=tokenizer,
                mixture=mixture,
                chats=chats,
                settings=settings,
                context_length=context_length,
            ),
        )

    def evaluation_of(variant: str) -> dg.AssetsDefinition:
        @dg.asset(name=f"{variant}_evaluation", ins={"model": dg.AssetIn(f"{variant}_model")}, **common)
        def evaluation(
            context: dg.AssetExecutionContext,
            compute: Compute,
            model: Path,
            tokenizer: Path,
            training_mixture: Path,
            chat_dataset: Path,
        ) -> Iterator[dg.Output[Path]]:
            yield from measure(context, compute, variant, model, tokenizer, training_mixture, chat_dataset)

        return evaluation

    @dg.asset(partitions_def=partitions, **common)
    def gguf_evaluation(
        context: dg.AssetExecutionContext,
        compute: Compute,
        gguf_model: Path,
        tokenizer: Path,
        training_mixture: Path,
        chat_dataset: Path,
    ) -> Iterator[dg.Output[Path]]:
        variant = f"gguf {context.partition_key}"
        yield from measure(context, compute, variant, gguf_model, tokenizer, training_mixture, chat_dataset)

    @dg.asset(group_name="evaluation", io_manager_key="folders", code_version=f"1-{recipe}")
    def benchmark_report(
        context: dg.AssetExecutionContext,
        compute: Compute,
        merged_evaluation: Path,
        pruned_evaluation: Path,
        awq_evaluation: Path,
        gguf_evaluation: dict[str, Path],
    ) -> Iterator[dg.Output[Path]]:
        """`report.md`, `report.json` and plots: all variants in one table, measured on the same held-out text."""
        yield from compute.materialize(
            context,
            report.__name__,
            report.Spec(
                recipe=recipe,
                evaluations=[merged_evaluation, pruned_evaluation, awq_evaluation, *gguf_evaluation.values()],
            ),
        )

    return [
        *map(evaluation_of, variants),
        gguf_evaluation,
        benchmark_report,
    ]
