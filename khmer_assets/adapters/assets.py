"""The assets of adapters, a partition each: chats, training, evaluation, release and deployment."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

from khmer_assets.adapters import evaluate
from khmer_assets.adapters import release as release_payload
from khmer_assets.adapters.adapter import Adapter
from khmer_assets.corpus.decontamination import Decontamination
from khmer_assets.evaluation.evaluate import Evaluation
from khmer_assets.finetuning import sft
from khmer_assets.foundation.settings import code_version, digest_of
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.assets import chat_checks
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chat_files import read_chats
from khmer_assets.instructions.chats import SAMPLE_CHATS, Split, readable
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.release.deployment import load_adapter, registered_answer, served_endpoint
from khmer_assets.sources.file_versions import version_of
from resources.blocking_checks import require_checks
from resources.compute import Compute
from resources.instance import GPU_POOL, ON_DEMAND
from resources.model_server import MODEL_NAME, ModelServer, ModelServerError
from resources.tracking import tracked_run


def adapter_assets(
    adapters: list[Adapter],
    normalization: Normalization,
    split: Split,
    decontamination: Decontamination,
    base: Path,
    evaluation: Evaluation,
    model: str,
    context_length: int,
    seed: int,
) -> list[Any]:
    """All assets of the recipe's adapters; none where there is no adapter.

    `base` is the folder that the paths of evaluation sets are relative to. `model` is the asset of the model that is
    adapted, `context_length` (tokens) bounds the chats.
    """
    if not adapters:
        return []
    by_name = {adapter.name: adapter for adapter in adapters}
    partitions = dg.StaticPartitionsDefinition(list(by_name))
    training = digest_of([adapter.finetuning.model_dump() for adapter in adapters])[:12]
    floors = digest_of({adapter.name: adapter.min_answer_accuracy for adapter in adapters})[:12]

    @dg.observable_source_asset(group_name="instructions", partitions_def=partitions)
    def adapter_files() -> dg.DataVersionsByPartition:
        """The files with the adapters' chats; the version of each is a digest of its content."""
        versions = {}
        for adapter in adapters:
            try:
                versions[adapter.name] = version_of(UPath(adapter.chats))[:16]
            except OSError:
                versions[adapter.name] = "missing"
        return dg.DataVersionsByPartition(versions)

    @dg.asset(
        group_name="instructions",
        io_manager_key="frames",
        kinds={"polars"},
        partitions_def=partitions,
        deps=["adapter_files", "evaluation_files"],
        code_version=code_version(2, normalization=normalization, split=split, decontamination=decontamination),
    )
    def adapter_chats(context: dg.AssetExecutionContext) -> dg.Output[pl.LazyFrame]:
        """The chats that an adapter learns, as of chat_dataset; lines that are no chats are set aside with a reason."""
        adapter = by_name[context.partition_key]
        try:
            chats = read_chats(adapter.chats, adapter.name, normalization)
        except OSError as error:
            reason = (
                f"the chats of the adapter {adapter.name!r} cannot be read: {error}; put the file there, or correct"
            )
            raise dg.Failure(f"{reason} adapters.chats in the recipe", allow_retries=False) from None
        rows = split_chats(chats, split)
        samples = readable(rows.filter(pl.col("rule").is_null()).head(SAMPLE_CHATS).collect())
        return dg.Output(rows, metadata={"samples": dg.MetadataValue.md(markdown_table(samples))})

    @dg.asset(
        group_name="finetuning",
        io_manager_key="folders",
        kinds={"pytorch", "huggingface"},
        pool=GPU_POOL,
        partitions_def=partitions,
        ins={"model": dg.AssetIn(model)},
        code_version=f"{code_version(2, seed=seed)}-{training}-{context_length}",
    )
    def domain_adapter(
        context: dg.AssetExecutionContext,
        compute: Compute,
        mlflow: dg.ResourceParam[Any],
        model: Path,
        adapter_chats: Path,
    ) -> Iterator[dg.Output[Path]]:
        """A peft folder: a LoRA adapter of the whole model for one domain; `training.json` holds the loss curve."""
        spec = sft.Spec(
            base=model,
            chats=adapter_chats,
            settings=by_name[context.partition_key].finetuning,
            context_length=context_length,
            seed=seed,
        )
        with tracked_run(mlflow, context) as env:
            yield from compute.materialize(context, sft.__name__, spec, env)

    @dg.asset(
        group_name="evaluation",
        io_manager_key="folders",
        pool=GPU_POOL,
        partitions_def=partitions,
        ins={"model": dg.AssetIn(model)},
        code_version=f"{code_version(1, evaluation=evaluation)}-{floors}",
    )
    def adapter_evaluation(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model: Path,
        domain_adapter: Path,
        adapter_chats: Path,
    ) -> Iterator[dg.Output[Path]]:
        """`evaluation.json`: loss and exact answers on the held-out chats of an adapter, with and without it."""
        spec = evaluate.Spec(
            model=model,
            adapter=domain_adapter,
            chats=adapter_chats,
            settings=evaluation,
            context_length=context_length,
        )
        yield from compute.materialize(context, evaluate.__name__, spec)

    @dg.asset_check(asset="adapter_evaluation", partitions_def=partitions, blocking=True)
    def adapter_helps(context: dg.AssetCheckExecutionContext, adapter_evaluation: Path) -> dg.AssetCheckResult:
        """With the adapter the loss is lower than without it, and enough held-out chats are answered exactly."""
        figures = json.loads((adapter_evaluation / "evaluation.json").read_text())
        floor = by_name[context.partition_key].min_answer_accuracy
        loss, without = figures["with"]["loss"], figures["without"]["loss"]
        accuracy = figures["with"]["answer_accuracy"]
        return dg.AssetCheckResult(
            passed=loss < without and accuracy >= floor,
            description=f"loss {loss:.3f} with the adapter, {without:.3f} without; {accuracy:.0%} answered exactly, "
            f"expected at least {floor:.0%}",
            metadata={"loss": loss, "loss_without": without, "answer_accuracy": accuracy, "floor": floor},
        )

    @dg.asset(
        group_name="serving",
        io_manager_key="folders",
        partitions_def=partitions,
        kinds={"huggingface"},
        code_version="1",
    )
    def adapter_release(
        context: dg.AssetExecutionContext,
        compute: Compute,
        domain_adapter: Path,
        adapter_evaluation: Path,
    ) -> Iterator[dg.Output[Path]]:
        """`adapter/` to be served and `release.json`. Refused while a blocking check upstream is not met."""
        require_checks(context)
        yield from compute.materialize(
            context,
            release_payload.__name__,
            release_payload.Spec(
                name=context.partition_key,
                adapter=domain_adapter,
                evaluation=adapter_evaluation,
            ),
        )

    # The sensor makes it; `make run` only loads the adapter, for both at once would each find the other's inputs newer.
    @dg.asset(
        group_name="serving",
        io_manager_key="folders",
        partitions_def=partitions,
        kinds={"vllm"},
        deps=["served_model"],
        code_version="1",
        tags=ON_DEMAND,
    )
    def served_adapter(context: dg.AssetExecutionContext, model_server: ModelServer, adapter_release: Path) -> Path:
        """`endpoint.json`: address and names under which the served model answers with this adapter."""
        name = context.partition_key
        try:
            seconds = load_adapter(model_server, adapter_release, context.log.info)
            question, served_name = by_name[name].question, f"{MODEL_NAME}-{name}"
            files = adapter_release / "adapter"
            answer = registered_answer(model_server, served_name, files, question, evaluation.max_new_tokens)
        except ModelServerError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        context.add_output_metadata(
            {
                "address": dg.MetadataValue.url(model_server.base_url),
                "question": question,
                "answer": answer,
                "seconds_to_load": round(seconds, 2),
            }
        )
        (served,) = (adapter for adapter in model_server.adapters() if adapter.name == name)
        return served_endpoint(model_server, served.digest, served.names)

    return [
        adapter_files,
        adapter_chats,
        *chat_checks("adapter_chats", split, decontamination, base, normalization, partitions),
        domain_adapter,
        adapter_evaluation,
        adapter_helps,
        adapter_release,
        served_adapter,
    ]
