"""The assets of the evaluation stage: one evaluation a variant, and the report that compares them."""

import json
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.evaluation import adapter, evaluate, report
from khmer_assets.recipe import Recipe, digest_of
from resources.compute import Compute


def evaluation_assets(recipe: Recipe) -> list[Any]:
    """An evaluation of each variant, benchmark_report and its gates."""
    quantizations = dg.StaticPartitionsDefinition(list(recipe.compression.gguf))
    common: dict[str, Any] = {
        "group_name": "evaluation",
        "io_manager_key": "folders",
        "pool": "gpu",
        "code_version": recipe.version(1, "evaluation"),
        "description": "`evaluation.json`: quality, answers, size, memory and speed of this variant.",
    }

    def measure(
        context: dg.AssetExecutionContext, compute: Compute, variant: str, model: Path, *others: Path
    ) -> dg.Output[Path]:
        tokenizer, mixture, chats = others
        return compute.run(
            context,
            "khmer_assets.evaluation.evaluate",
            evaluate.Spec(
                variant=variant,
                model=model,
                tokenizer=tokenizer,
                mixture=mixture,
                chats=chats,
                settings=recipe.evaluation,
                context_length=recipe.pretraining.context_length,
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
        ) -> dg.Output[Path]:
            return measure(context, compute, variant, model, tokenizer, training_mixture, chat_dataset)

        return evaluation

    @dg.asset(partitions_def=quantizations, **common)
    def gguf_evaluation(
        context: dg.AssetExecutionContext,
        compute: Compute,
        gguf_model: Path,
        tokenizer: Path,
        training_mixture: Path,
        chat_dataset: Path,
    ) -> dg.Output[Path]:
        variant = f"gguf {context.partition_key}"
        return measure(context, compute, variant, gguf_model, tokenizer, training_mixture, chat_dataset)

    @dg.asset(group_name="evaluation", io_manager_key="folders", code_version=f"1-{recipe.name}")
    def benchmark_report(
        context: dg.AssetExecutionContext,
        compute: Compute,
        merged_evaluation: Path,
        pruned_evaluation: Path,
        awq_evaluation: Path,
        gguf_evaluation: dict[str, Path],
    ) -> dg.Output[Path]:
        """`report.md`, `report.json` and plots: all variants in one table, measured on the same held-out text."""
        return compute.run(
            context,
            "khmer_assets.evaluation.report",
            report.Spec(
                recipe=recipe.name,
                evaluations=[merged_evaluation, pruned_evaluation, awq_evaluation, *gguf_evaluation.values()],
            ),
        )

    def released(benchmark_report: Path) -> dict[str, Any]:
        figures = json.loads((benchmark_report / "report.json").read_text())["variants"][recipe.release.variant]
        return dict(figures)

    @dg.asset_check(asset="benchmark_report", blocking=True)
    def released_variant_predicts_text(benchmark_report: Path) -> dg.AssetCheckResult:
        """Bits a character of the variant to be released stay below the recipe's limit in every language."""
        bits = released(benchmark_report)["bits_per_character"]
        limit = recipe.release.max_bits_per_character
        return dg.AssetCheckResult(passed=all(b <= limit for b in bits.values()), metadata={**bits, "limit": limit})

    @dg.asset_check(asset="benchmark_report", blocking=True)
    def released_variant_answers(benchmark_report: Path) -> dg.AssetCheckResult:
        """The share of test chats that the variant to be released answers exactly reaches the recipe's floor."""
        accuracy = released(benchmark_report)["answer_accuracy"]
        floor = recipe.release.min_answer_accuracy
        return dg.AssetCheckResult(
            passed=accuracy is not None and accuracy >= floor,
            metadata={"answer_accuracy": accuracy if accuracy is not None else 0.0, "floor": floor},
        )

    return [
        *map(evaluation_of, ("merged", "pruned", "awq")),
        gguf_evaluation,
        benchmark_report,
        released_variant_predicts_text,
        released_variant_answers,
        *(adapter_evaluation_assets(recipe) if recipe.adapters else []),
    ]


def adapter_evaluation_assets(recipe: Recipe) -> list[Any]:
    """adapter_evaluation and its gates."""
    partitions = dg.StaticPartitionsDefinition([adapter.name for adapter in recipe.adapters])
    floors = digest_of({adapter.name: adapter.min_answer_accuracy for adapter in recipe.adapters})[:12]

    @dg.asset(
        group_name="evaluation",
        io_manager_key="folders",
        pool="gpu",
        partitions_def=partitions,
        code_version=f"{recipe.version(1, 'evaluation')}-{floors}",
    )
    def adapter_evaluation(
        context: dg.AssetExecutionContext,
        compute: Compute,
        merged_model: Path,
        domain_adapter: Path,
        adapter_chats: Path,
    ) -> dg.Output[Path]:
        """`evaluation.json`: loss and exact answers on the held-out chats of an adapter, with and without it."""
        spec = adapter.Spec(
            model=merged_model,
            adapter=domain_adapter,
            chats=adapter_chats,
            settings=recipe.evaluation,
            context_length=recipe.pretraining.context_length,
        )
        return compute.run(context, adapter.__name__, spec)

    @dg.asset_check(asset="adapter_evaluation", partitions_def=partitions, blocking=True)
    def adapter_helps(context: dg.AssetCheckExecutionContext, adapter_evaluation: Path) -> dg.AssetCheckResult:
        """With the adapter the loss is lower than without it, and enough held-out chats are answered exactly."""
        figures = json.loads((adapter_evaluation / "evaluation.json").read_text())
        floor = recipe.adapter(context.partition_key).min_answer_accuracy
        loss, without = figures["with"]["loss"], figures["without"]["loss"]
        accuracy = figures["with"]["answer_accuracy"]
        return dg.AssetCheckResult(
            passed=loss < without and accuracy >= floor,
            description=f"loss {loss:.3f} with the adapter, {without:.3f} without; {accuracy:.0%} answered exactly, "
            f"expected at least {floor:.0%}",
            metadata={"loss": loss, "loss_without": without, "answer_accuracy": accuracy, "floor": floor},
        )

    return [adapter_evaluation, adapter_helps]
