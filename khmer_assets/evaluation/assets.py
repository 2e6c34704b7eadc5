"""The assets of the evaluation stage: the items, one evaluation a variant, and the report that compares them.

An evaluation is one asset a variant with the tasks as its parts, and not one a variant and task: a step costs 2 to 3 s
and the loading of the model, which is more than most tasks take. A part that is finished survives a kill.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

from khmer_assets.compression.variants import artifact_of, quantizations_of
from khmer_assets.evaluation import compare, evaluate, exports, report
from khmer_assets.evaluation.items import Benchmark, Item, as_frame
from khmer_assets.evaluation.served import compared_release
from khmer_assets.evaluation.tasks import belebele, sib200, translation
from khmer_assets.foundation.settings import RecipeError, code_version, digest_of
from khmer_assets.sources.file_versions import version_of
from khmer_assets.sources.rows import SourceError
from khmer_assets.teachers.settings import Teacher
from resources.compute import Compute
from resources.instance import GPU_POOL, ON_DEMAND
from resources.storage import FoldersIOManager, MissingArtifact

COMPARED = "compared_models.txt"  # in the state folder: the models that `khmer evaluate` was asked for
READERS: Mapping[str, Any] = {
    "belebele": belebele.read,
    "sib200": sib200.read,
    "flores200": translation.read,
    "ntrex128": translation.read,
}


def evaluation_assets(
    recipe: str,
    settings: evaluate.Evaluation,
    variants: list[str],
    model: str,
    tokenizer: str,
    texts: str,
    context_length: int,
    teachers: Sequence[Teacher] = (),
) -> list[Any]:
    """An evaluation of each variant, and benchmark_report; `recipe` is the name in its title.

    `model` is the asset of the first variant, which is the whole model; `tokenizer` that of the tokenizer of all,
    `texts` that of the held-out texts. `context_length` in tokens. `teachers`: of which one may judge safety.
    """
    partitions = dg.StaticPartitionsDefinition(quantizations_of(variants))
    folders = [variant for variant in variants if not variant.startswith("gguf ")]
    teacher = next((one for one in teachers if one.name == settings.safety_teacher), None)
    # who judges decides what is said; what it costs and how fast it may be asked does not
    version = code_version(4, evaluation=settings, **({"teacher": [teacher.model]} if teacher else {}))
    items = {"items": "evaluation_items"} if settings.tasks else {}
    # as files: of what a function takes as **kwargs, Dagster does not read the type
    held_out = {
        name: dg.AssetIn(asset, dagster_type=Path)
        for name, asset in {"texts": texts, "chat_dataset": "chat_dataset", **items}.items()
    }
    common: dict[str, Any] = {
        "group_name": "evaluation",
        "io_manager_key": "folders",
        "pool": GPU_POOL,
        "code_version": version,
    }

    def evaluation_of(variant: str) -> dg.AssetsDefinition:
        """The evaluation of a variant; `gguf` stands for all quantizations, a partition each."""

        @dg.asset(
            name=f"{variant}_evaluation",
            description="`evaluation.json`: quality on each task with its interval, answers, size, memory and speed of "
            "this variant; `scores.json`, `answers.jsonl`, `calibration.json`.",
            partitions_def=partitions if variant == "gguf" else None,
            ins={
                "model": dg.AssetIn(artifact_of(variant, model)[0]),
                "tokenizer": dg.AssetIn(tokenizer),
                **held_out,
            },
            **common,
        )
        def evaluation(
            context: dg.AssetExecutionContext, compute: Compute, model: Path, tokenizer: Path, **measured_on: Path
        ) -> Iterator[dg.Output[Path]]:
            spec = evaluate.Spec(
                variant=f"gguf {context.partition_key}" if variant == "gguf" else variant,
                model=model,
                tokenizer=tokenizer,
                mixture=measured_on["texts"],
                chats=measured_on["chat_dataset"],
                items=measured_on.get("items"),
                settings=settings,
                context_length=context_length,
                teacher=teacher,
                teachers=Path(compute.home) / "teachers",
            )
            yield from compute.materialize(context, evaluate.__name__, spec)

        return evaluation

    measured = [*folders, *(["gguf"] if partitions.get_partition_keys() else [])]

    @dg.asset(**common, ins=held_out, tags=ON_DEMAND)
    def compared_evaluation(
        context: dg.AssetExecutionContext, compute: Compute, folders: dg.ResourceParam[FoldersIOManager], **given: Path
    ) -> Iterator[dg.Output[Path]]:
        """A folder a model that `khmer evaluate` was asked for, each as the evaluation of a variant."""
        spec = compare.Spec(
            models=compare.models_in(Path(compute.home) / COMPARED),
            former=newest(folders, "compared_evaluation"),
            mixture=given["texts"],
            chats=given["chat_dataset"],
            items=given.get("items"),
            settings=settings,
            context_length=context_length,
            teacher=teacher,
            teachers=Path(compute.home) / "teachers",
        )
        yield from compute.materialize(context, compare.__name__, spec)

    evaluated = {variant: dg.AssetIn(f"{variant}_evaluation") for variant in measured}

    @dg.asset(
        **{**common, "code_version": "1"},
        ins=evaluated | {f"{variant}_model": dg.AssetIn(artifact_of(variant, model)[0]) for variant in measured},
        tags=ON_DEMAND,
    )
    def export_comparison(
        context: dg.AssetExecutionContext, compute: Compute, **given: Any
    ) -> Iterator[dg.Output[Path]]:
        """`exports.json` and `exports.md`: disk, memory, speed in rounds over all variants in turn, and quality."""
        spec = exports.Spec(
            models=by_variant(measured, {variant: given[f"{variant}_model"] for variant in measured}),
            evaluations=by_variant(measured, given),
            context_length=context_length,
        )
        yield from compute.materialize(context, exports.__name__, spec)

    @dg.asset_check(asset=export_comparison)
    def exports_keep_quality(export_comparison: Path) -> dg.AssetCheckResult:
        """No variant needs more bits a character than its form may, in any language."""
        figures = json.loads((export_comparison / exports.FIGURES).read_text())
        lost = exports.too_much_lost(figures)
        told = "; ".join(f"{variant} {reason}" for variant, reason in lost.items())
        losses = {
            f"{variant}, {name}": loss for variant, own in figures.items() for name, loss in exports.losses(own).items()
        }
        return dg.AssetCheckResult(
            passed=not lost, severity=dg.AssetCheckSeverity.WARN, description=told or None, metadata=losses
        )

    @dg.asset(
        group_name="evaluation",
        io_manager_key="folders",
        ins=evaluated,
        deps=[compared_evaluation, export_comparison],
        code_version=f"2-{recipe}",
    )
    def benchmark_report(
        context: dg.AssetExecutionContext,
        compute: Compute,
        folders: dg.ResourceParam[FoldersIOManager],
        **evaluations: Any,
    ) -> Iterator[dg.Output[Path]]:
        """`report.html`, `report.md`, `report.json`, `scores/` and plots: all variants, and the models that they were
        compared with, measured on the same items; what changed since the release that is served."""
        compared = newest(folders, "compared_evaluation")
        spec = report.Spec(
            recipe=recipe,
            evaluations=list(by_variant(measured, evaluations).values()),
            compared=sorted(path for path in compared.iterdir() if path.is_dir()) if compared else [],
            release=compared_release(Path(compute.home), newest(folders, "release")),
            exports=newest(folders, "export_comparison"),
        )
        yield from compute.materialize(context, report.__name__, spec)

    read = evaluation_item_assets(settings.tasks) if settings.tasks else []
    evaluations = list(map(evaluation_of, measured))
    return [*read, *evaluations, compared_evaluation, export_comparison, exports_keep_quality, benchmark_report]


def evaluation_item_assets(tasks: list[Benchmark]) -> list[Any]:
    """The files of the recipe's tasks, and their items."""

    @dg.observable_source_asset(group_name="evaluation")
    def task_files(context: dg.OpExecutionContext) -> dg.DataVersion:
        """The files on this machine that the recipe's tasks name; the version is a digest of them."""
        try:
            places = [Path(task.data) for task in tasks if task.data and task.is_local]
            files = [file for place in places for file in ([place] if place.is_file() else sorted(place.rglob("*")))]
            return dg.DataVersion(digest_of([version_of(UPath(file)) for file in files if file.is_file()])[:16])
        except OSError as error:  # evaluation_items fails with the reason
            context.log.warning(f"{error}")
            return dg.DataVersion("missing")

    @dg.asset(
        group_name="evaluation",
        io_manager_key="frames",
        kinds={"polars"},
        deps=[task_files],
        code_version=code_version(1, tasks=tasks),
    )
    def evaluation_items() -> pl.LazyFrame:
        """The items of the recipe's tasks, a row each (task, id, prompt, choices, answer, reference, language,
        category), in the order of the files; rows that cannot be used are set aside with a reason."""
        items: dict[str, list[Item]] = {}
        for task in tasks:
            try:
                items[task.name] = READERS[task.task](task)
            except (SourceError, RecipeError, OSError, pl.exceptions.PolarsError) as error:
                raise dg.Failure(str(error), allow_retries=False) from None
        return as_frame(items)

    return [task_files, evaluation_items]


def by_variant(measured: list[str], given: Mapping[str, Any]) -> dict[str, Path]:
    """The folders of what is `given` for each of the `measured`, the quantizations last, by variant."""
    found = {variant: given[variant] for variant in measured if variant != "gguf"}
    return found | {f"gguf {quantization}": folder for quantization, folder in given.get("gguf", {}).items()}


def newest(folders: FoldersIOManager, asset: str) -> Path | None:
    """What the store holds of an asset that need not be there, nor be made anew for this."""
    with suppress(MissingArtifact):
        return folders.store.current(asset)
    return None
