"""The assets of the evaluation stage: one evaluation a variant, and the report that compares them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.compression.variants import artifact_of, quantizations_of
from khmer_assets.evaluation import evaluate, report
from khmer_assets.foundation.settings import code_version
from resources.compute import Compute
from resources.instance import GPU_POOL


def evaluation_assets(
    recipe: str,
    settings: evaluate.Evaluation,
    variants: list[str],
    model: str,
    tokenizer: str,
    texts: str,
    context_length: int,
) -> list[Any]:
    """An evaluation of each variant, and benchmark_report; `recipe` is the name in its title.

    `model` is the asset of the first variant, which is the whole model; `tokenizer` that of the tokenizer of all,
    `texts` that of the held-out texts. `context_length` in tokens.
    """
    partitions = dg.StaticPartitionsDefinition(quantizations_of(variants))
    folders = [variant for variant in variants if not variant.startswith("gguf ")]
    common: dict[str, Any] = {
        "group_name": "evaluation",
        "io_manager_key": "folders",
        "pool": GPU_POOL,
        "code_version": code_version(1, evaluation=settings),
        "description": "`evaluation.json`: quality, answers, size, memory and speed of this variant.",
    }

    def evaluation_of(variant: str) -> dg.AssetsDefinition:
        """The evaluation of a variant; `gguf` stands for all quantizations, a partition each."""

        @dg.asset(
            name=f"{variant}_evaluation",
            partitions_def=partitions if variant == "gguf" else None,
            ins={
                "model": dg.AssetIn(artifact_of(variant, model)[0]),
                "tokenizer": dg.AssetIn(tokenizer),
                "texts": dg.AssetIn(texts),
            },
            **common,
        )
        def evaluation(
            context: dg.AssetExecutionContext,
            compute: Compute,
            model: Path,
            tokenizer: Path,
            texts: Path,
            chat_dataset: Path,
        ) -> Iterator[dg.Output[Path]]:
            spec = evaluate.Spec(
                variant=f"gguf {context.partition_key}" if variant == "gguf" else variant,
                model=model,
                tokenizer=tokenizer,
                mixture=texts,
                chats=chat_dataset,
                settings=settings,
                context_length=context_length,
            )
            yield from compute.materialize(context, evaluate.__name__, spec)

        return evaluation

    measured = [*folders, *(["gguf"] if partitions.get_partition_keys() else [])]

    @dg.asset(
        group_name="evaluation",
        io_manager_key="folders",
        ins={variant: dg.AssetIn(f"{variant}_evaluation") for variant in measured},
        code_version=f"1-{recipe}",
    )
    def benchmark_report(
        context: dg.AssetExecutionContext, compute: Compute, **evaluations: Any
    ) -> Iterator[dg.Output[Path]]:
        """`report.md`, `report.json` and plots: all variants in one table, measured on the same held-out text."""
        found = [evaluations[variant] for variant in folders] + [*evaluations.get("gguf", {}).values()]
        yield from compute.materialize(context, report.__name__, report.Spec(recipe=recipe, evaluations=found))

    return [*map(evaluation_of, measured), benchmark_report]
