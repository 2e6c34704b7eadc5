"""The assets of adapters, a partition each: chats, training, evaluation, release and deployment."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import polars as pl
from upath import UPath

from khmer_assets.adapters import evaluate
from khmer_assets.adapters import release as release_payload
from khmer_assets.adapters.adapter import Adapter, TrainedAdapter
from khmer_assets.corpus.decontamination import Decontamination
from khmer_assets.evaluation.evaluate import Evaluation
from khmer_assets.finetuning import sft
from khmer_assets.foundation.settings import code_version, digest_of
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.assets import chat_checks
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chat_files import read_chats
from khmer_assets.instructions.chats import SAMPLE_CHATS, Split, readable
from khmer_assets.instructions.embedded_tutor import tutor_chats
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.release.deployment import load_adapter, registered_answer, served_endpoint
from khmer_assets.sources.file_versions import version_of
from resources.blocking_checks import require_checks
from resources.compute import Compute
from resources.instance import GPU_POOL, ON_DEMAND, ON_DEMAND_PARTITIONS
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
    left_out = {ON_DEMAND_PARTITIONS: [adapter.name for adapter in adapters if adapter.on_demand]}
    made = {adapter.name: adapter.source.model_dump() for adapter in adapters if adapter.source is not None}

    @dg.observable_source_asset(group_name="instructions", partitions_def=partitions)
    def adapter_files() -> dg.DataVersionsByPartition:
        """The files with the adapters' chats; the version of each is a digest of its content."""
        versions = {}
        for adapter in adapters:
            if adapter.chats is None:
                versions[adapter.name] = "made"
                continue
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
        metadata=left_out,
        code_version=code_version(
            3, normalization=normalization, split=split, decontamination=decontamination, made=made, seed=seed
        ),
    )
    def adapter_chats(context: dg.AssetExecutionContext) -> dg.Output[pl.LazyFrame]:
        """The chats that an adapter learns, as of chat_dataset; lines that are no chats are set aside with a reason."""
        adapter = by_name[context.partition_key]
        if adapter.source is not None:
            chats = tutor_chats(adapter.source, adapter.name, normalization, seed)
        else:
            assert adapter.chats is not None, "Adapter has one of both"
            try:
                chats = read_chats(adapter.chats, adapter.name, normalization)
            except OSError as error:
                told = f"the chats of the adapter {adapter.name!r} cannot be read: {error}; put the file there, or"
                raise dg.Failure(f"{told} correct adapters.chats in the recipe", allow_retries=False) from None
        rows = split_chats(chats, split)
        samples = readable(rows.filter(pl.col("rule").is_null()).head(SAMPLE_CHATS).collect())
        return dg.Output(rows, metadata={"samples": dg.MetadataValue.md(markdown_table(samples))})

    names = Names("adapter_chats", "domain_adapter", "adapter_evaluation", "adapter_release", "served_adapter")
    trained = {adapter.name: TrainedAdapter.model_validate(adapter.model_dump(include=COMMON)) for adapter in adapters}
    return [
        adapter_files,
        adapter_chats,
        *chat_checks("adapter_chats", split, decontamination, base, normalization, partitions),
        *trained_adapter_assets(trained, names, evaluation, model, context_length, seed, partitions, left_out),
    ]


class Names(NamedTuple):
    """The names of the assets that lead from an adapter's chats to its serving."""

    chats: str
    adapter: str
    evaluation: str
    release: str
    served: str


COMMON = set(TrainedAdapter.model_fields)


def trained_adapter_assets(
    adapters: Mapping[str, TrainedAdapter],
    names: Names,
    evaluation: Evaluation,
    model: str,
    context_length: int,
    seed: int,
    partitions: dg.PartitionsDefinition | None,
    metadata: Mapping[str, Any],
    measured: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
    group: str | None = None,
) -> list[Any]:
    """The assets from chats to the served adapter, a partition an adapter; without `partitions` there is one adapter.

    `measured` are further assets with checks that the release waits for; all are in `group`, else each in its stage's.
    """
    training = digest_of([adapter.finetuning.model_dump() for adapter in adapters.values()])[:12]
    asked = {name: (adapter.min_answer_accuracy, adapter.max_new_tokens) for name, adapter in adapters.items()}
    floors = digest_of(asked)[:12]
    common: dict[str, Any] = {
        "io_manager_key": "folders",
        "partitions_def": partitions,
        "metadata": metadata,
        "tags": tags,
    }

    def name_in(context: Any) -> str:
        return str(context.partition_key) if partitions else next(iter(adapters))

    @dg.asset(
        **common,
        name=names.adapter,
        group_name=group or "finetuning",
        kinds={"pytorch", "huggingface"},
        pool=GPU_POOL,
        ins={"model": dg.AssetIn(model), "chats": dg.AssetIn(names.chats)},
        code_version=f"{code_version(2, seed=seed)}-{training}-{context_length}",
    )
    def domain_adapter(
        context: dg.AssetExecutionContext,
        compute: Compute,
        mlflow: dg.ResourceParam[Any],
        model: Path,
        chats: Path,
    ) -> Iterator[dg.Output[Path]]:
        """A peft folder: a LoRA adapter of the whole model for one domain; `training.json` holds the loss curve."""
        spec = sft.Spec(
            base=model,
            chats=chats,
            settings=adapters[name_in(context)].finetuning,
            context_length=context_length,
            seed=seed,
        )
        with tracked_run(mlflow, context) as env:
            yield from compute.materialize(context, sft.__name__, spec, env)

    @dg.asset(
        **common,
        name=names.evaluation,
        group_name=group or "evaluation",
        pool=GPU_POOL,
        ins={
            "model": dg.AssetIn(model),
            "domain_adapter": dg.AssetIn(names.adapter),
            "chats": dg.AssetIn(names.chats),
        },
        code_version=f"{code_version(1, evaluation=evaluation)}-{floors}",
    )
    def adapter_evaluation(
        context: dg.AssetExecutionContext,
        compute: Compute,
        model: Path,
        domain_adapter: Path,
        chats: Path,
    ) -> Iterator[dg.Output[Path]]:
        """`evaluation.json`: loss and exact answers on the held-out chats of an adapter, with and without it."""
        longest = adapters[name_in(context)].max_new_tokens or evaluation.max_new_tokens
        spec = evaluate.Spec(
            model=model,
            adapter=domain_adapter,
            chats=chats,
            settings=evaluation.model_copy(update={"max_new_tokens": longest}),
            context_length=context_length,
        )
        yield from compute.materialize(context, evaluate.__name__, spec)

    @dg.asset_check(asset=names.evaluation, partitions_def=partitions, blocking=True)
    def adapter_helps(context: dg.AssetCheckExecutionContext, adapter_evaluation: Path) -> dg.AssetCheckResult:
        """With the adapter the loss is lower than without it, and enough held-out chats are answered exactly."""
        figures = json.loads((adapter_evaluation / "evaluation.json").read_text())
        floor = adapters[name_in(context)].min_answer_accuracy
        loss, without = figures["with"]["loss"], figures["without"]["loss"]
        accuracy = figures["with"]["answer_accuracy"]
        return dg.AssetCheckResult(
            passed=loss < without and accuracy >= floor,
            description=f"loss {loss:.3f} with the adapter, {without:.3f} without; {accuracy:.0%} answered exactly, "
            f"expected at least {floor:.0%}",
            metadata={"loss": loss, "loss_without": without, "answer_accuracy": accuracy, "floor": floor},
        )

    @dg.asset(
        **common,
        name=names.release,
        group_name=group or "serving",
        kinds={"huggingface"},
        ins={"domain_adapter": dg.AssetIn(names.adapter), "adapter_evaluation": dg.AssetIn(names.evaluation)},
        deps=measured,
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
                name=name_in(context),
                adapter=domain_adapter,
                evaluation=adapter_evaluation,
            ),
        )

    # The sensor makes it; `make run` only loads the adapter, for both at once would each find the other's inputs newer.
    @dg.asset(
        **{**common, "tags": ON_DEMAND},
        name=names.served,
        group_name=group or "serving",
        kinds={"vllm"},
        ins={"adapter_release": dg.AssetIn(names.release)},
        deps=["served_model"],
        code_version="1",
    )
    def served_adapter(context: dg.AssetExecutionContext, model_server: ModelServer, adapter_release: Path) -> Path:
        """`endpoint.json`: address and names under which the served model answers with this adapter."""
        name, adapter = name_in(context), adapters[name_in(context)]
        try:
            seconds = load_adapter(model_server, adapter_release, context.log.info)
            question, served_name = adapter.question, f"{MODEL_NAME}-{name}"
            files = adapter_release / "adapter"
            longest = adapter.max_new_tokens or evaluation.max_new_tokens
            answer = registered_answer(model_server, served_name, files, question, longest)
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
        (served,) = (one for one in model_server.adapters() if one.name == name)
        return served_endpoint(model_server, served.digest, served.names)

    return [domain_adapter, adapter_evaluation, adapter_helps, adapter_release, served_adapter]
