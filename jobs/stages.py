"""A job a stage of the graph, to be launched from the UI, the shell or a schedule.

Assets that are partitioned and those that are not cannot share a job, hence two for some stages.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import AssetSelection
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from resources.history import History, forget_models, forget_runs
from resources.model_server import ModelServer, ModelServerError

SOURCES_JOB = "refresh_sources"
SNAPSHOT_JOB = "take_snapshot"
CLEAN_UP_JOB = "clean_up"
REPORT_JOB = "report"


def stage_jobs(names: set[str]) -> list[UnresolvedAssetJobDefinition]:
    """The jobs that lead to a release, in the order in which they build it, for a graph that has assets of these
    `names`."""

    def job(name: str, description: str | None, *assets: str, and_also: AssetSelection | None = None) -> Any:
        found = [asset for asset in assets if asset in names]
        if not found:
            return None
        selection = AssetSelection.assets(*found)
        return dg.define_asset_job(name, selection | and_also if and_also else selection, description=description)

    recent = AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("training_mixture"), "snapshot_is_recent"))
    others = (
        "gguf_evaluation",
        "adapter_evaluation",
        "failure_evaluation",
        "compared_evaluation",
    )  # partitioned, or made on demand
    measured = sorted(name for name in names if name.endswith("_evaluation") and name not in others)
    found = [
        job(
            SOURCES_JOB,
            "Collect, normalize and filter one source (a partition).",
            *("raw_corpus", "normalized_corpus", "filtered_corpus"),
        ),
        job("find_duplicates", None, "dedup_index"),
        job("remove_duplicates", None, "deduplicated_corpus", "verbalized_sentences"),
        job("label_documents", "Let teachers label a sample of one source (a partition).", "document_labels"),
        job("learn_labels", "Learn what teachers and persons said of documents.", "label_corrections", "label_model"),
        job("label_corpus", "Label every document of one source (a partition).", "labelled_corpus"),
        job(SNAPSHOT_JOB, "Take the corpus as it is now for the next training.", "training_mixture"),
        job("train_tokenizer", None, "tokenizer", "tokenizer_report"),
        job("bring_in", "Fetch the open model that the recipe starts from.", "base_model"),
        job("extend", "Teach the open model's tokenizer Khmer.", "extended_tokenizer", "extended_model"),
        job("pretrain", None, "packed_dataset", "base_checkpoint"),
        job(
            "prepare_chats",
            None,
            *("questions_and_answers", "dialogues", "tutor_tasks", "translated_instructions"),
            *("chat_dataset", "chat_texts"),
        ),
        job("finetune", "Train the adapter; one run (a partition) where the recipe has several.", "sft_adapter"),
        job("merge", "Join the adapter, or the best of several, with its base.", "best_adapter", "merged_model"),
        job("compress", None, "pruned_model", "awq_model"),
        job(
            "quantize",
            "Convert, quantize and measure one GGUF quantization (a partition).",
            *("gguf_model", "gguf_evaluation"),
        ),
        job(
            REPORT_JOB,
            None,
            "evaluation_items",
            *measured,
            *("benchmark_report", "corpus_report"),
            and_also=recent if "training_mixture" in names else None,
        ),
        job("release_model", None, "release_bundle", "release"),
    ]
    return [one for one in found if one is not None]


def clean_up_job(history: History, home: Path) -> dg.JobDefinition:
    """Forgets what the recipe's `history` does not keep."""

    @dg.op
    def forget(context: dg.OpExecutionContext) -> None:
        runs = forget_runs(context.instance, context.repository_def.asset_graph, history.run_days)
        context.log.info(f"{runs} runs and {forget_models(home, history.tracked_models)} models are forgotten")

    @dg.job(name=CLEAN_UP_JOB)
    def clean_up() -> None:
        """Deletes old runs from Dagster and old copies of models from MLflow; artifacts and releases stay."""
        forget()

    return clean_up


def adapter_job() -> UnresolvedAssetJobDefinition:
    """Leads to the release of an adapter."""
    return dg.define_asset_job(
        "train_adapter",
        AssetSelection.assets("adapter_chats", "domain_adapter", "adapter_evaluation", "adapter_release"),
        description="Train, measure and release one adapter (a partition).",
    )


def router_job() -> UnresolvedAssetJobDefinition:
    """Learns who answers what best."""
    return dg.define_asset_job(
        "train_router",
        AssetSelection.assets("router"),
        description="Ask held-out chats of the model and of its adapters, and learn who answers what best.",
    )


def deploy_router_job() -> UnresolvedAssetJobDefinition:
    """Serves the current router."""
    return dg.define_asset_job("deploy_router", AssetSelection.assets("served_router"))


def failure_job(assets: Sequence[str]) -> UnresolvedAssetJobDefinition:
    """Leads from what the model gets wrong to an adapter that has learned from it, served."""
    return dg.define_asset_job(
        "learn_from_failures",
        AssetSelection.assets(*assets),
        description="Find what the model gets wrong, teach an adapter, measure what it gained, serve it.",
    )


def deploy_job() -> UnresolvedAssetJobDefinition:
    """Serves the current release."""
    return dg.define_asset_job("deploy", AssetSelection.assets("served_model"))


def deploy_adapter_job() -> UnresolvedAssetJobDefinition:
    """Serves the current release of an adapter (a partition)."""
    return dg.define_asset_job("deploy_adapter", AssetSelection.assets("served_adapter"))


def retire_adapter_job(adapters: list[str]) -> dg.JobDefinition:
    """Takes an adapter (a partition) away from the served model."""

    @dg.op
    def retire(context: dg.OpExecutionContext, model_server: ModelServer) -> None:
        try:
            model_server.retire_adapter(context.partition_key, context.log.info)
        except ModelServerError as error:
            raise dg.Failure(str(error), allow_retries=False) from None

    @dg.job(partitions_def=dg.StaticPartitionsDefinition(adapters))
    def retire_adapter() -> None:
        """Serves an adapter no longer, until served_adapter is materialized again."""
        retire()

    return retire_adapter
