"""A job a stage of the graph, to be launched from the UI, the shell or a schedule.

Assets that are partitioned and those that are not cannot share a job, hence two for some stages.
"""

from pathlib import Path

import dagster as dg
from dagster import AssetSelection
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from resources.history import History, forget_models, forget_runs
from resources.model_server import ModelServer, ModelServerError

SOURCES_JOB = "refresh_sources"
SNAPSHOT_JOB = "take_snapshot"
CLEAN_UP_JOB = "clean_up"
REPORT_JOB = "report"


def stage_jobs() -> list[UnresolvedAssetJobDefinition]:
    """The jobs that lead to a release, in the order in which they build it."""
    return [
        dg.define_asset_job(
            SOURCES_JOB,
            AssetSelection.assets("raw_corpus", "normalized_corpus", "filtered_corpus"),
            description="Collect, normalize and filter one source (a partition).",
        ),
        dg.define_asset_job("find_duplicates", AssetSelection.assets("dedup_index")),
        dg.define_asset_job("remove_duplicates", AssetSelection.assets("deduplicated_corpus", "verbalized_sentences")),
        dg.define_asset_job(
            SNAPSHOT_JOB,
            AssetSelection.assets("training_mixture"),
            description="Take the corpus as it is now for the next training.",
        ),
        dg.define_asset_job("train_tokenizer", AssetSelection.groups("tokenizer")),
        dg.define_asset_job("pretrain", AssetSelection.groups("pretraining")),
        dg.define_asset_job("finetune", AssetSelection.groups("instructions", "finetuning")),
        dg.define_asset_job("compress", AssetSelection.assets("pruned_model", "awq_model")),
        dg.define_asset_job(
            "quantize",
            AssetSelection.assets("gguf_model", "gguf_evaluation"),
            description="Convert, quantize and measure one GGUF quantization (a partition).",
        ),
        dg.define_asset_job(
            REPORT_JOB,
            (AssetSelection.groups("evaluation") - AssetSelection.assets("gguf_evaluation"))
            | AssetSelection.assets("corpus_report")
            | AssetSelection.checks(dg.AssetCheckKey(dg.AssetKey("training_mixture"), "snapshot_is_recent")),
        ),
        dg.define_asset_job("release_model", AssetSelection.assets("release_bundle", "release")),
    ]


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
