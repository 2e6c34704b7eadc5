"""The assets of the labels: what teachers and persons say of documents, the model that learns it, and what it says."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from upath import UPath

from khmer_assets.foundation.settings import code_version
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.labels import train
from khmer_assets.labels.corrections import CORRECTION, read_corrections
from khmer_assets.labels.labelled import label_batch, missing_questions
from khmer_assets.labels.model import LabelModel
from khmer_assets.labels.questions import counts, labelled, questions, sample, template
from khmer_assets.labels.settings import Labels
from khmer_assets.sources.file_versions import version_of
from khmer_assets.teachers.settings import Teacher
from resources.batches import Batches
from resources.compute import Compute
from resources.instance import ON_DEMAND
from resources.set_aside import set_aside_share_is_steady
from resources.storage import DATA, REMOVED
from resources.teachers import Teachers


def label_assets(
    settings: Labels, teachers: Sequence[Teacher], sources: Sequence[str], seed: int, of_chats: bool = False
) -> list[Any]:
    """document_labels (where there are teachers), label_corrections, label_model and labelled_corpus, and their checks.

    They are made on demand, but for a recipe whose mixture is made of them, or whose chats are judged (`of_chats`).
    """
    partitions = dg.StaticPartitionsDefinition(list(sources))
    common: dict[str, Any] = {"group_name": "labels", "tags": {} if settings.in_mixture or of_chats else ON_DEMAND}
    frames: dict[str, Any] = {**common, "io_manager_key": "frames", "kinds": {"polars", "parquet"}}

    @dg.observable_source_asset(group_name="labels")
    def correction_file() -> dg.DataVersion:
        """The recipe's file of corrections; the version is a digest of its content."""
        try:
            return dg.DataVersion(version_of(UPath(settings.corrections))[:16] if settings.corrections else "none")
        except OSError:  # label_corrections fails with the reason
            return dg.DataVersion("missing")

    @dg.asset(**frames, deps=[correction_file], code_version=code_version(1, categories=settings.categories))
    def label_corrections() -> dg.Output[pl.LazyFrame]:
        """What persons say of documents (`LABELLED`); lines that are no corrections are set aside with the reason."""
        rows = CORRECTION.to_frame()
        if settings.corrections is not None:
            try:
                rows = read_corrections(settings.corrections, settings.categories)
            except OSError as error:
                told = f"{settings.corrections} cannot be read: {error}; put the file there, or correct"
                raise dg.Failure(f"{told} labels.corrections in the recipe", allow_retries=False) from None
        return dg.Output(rows.lazy(), metadata=_counted(rows.lazy()))

    @dg.asset(
        **frames,
        partitions_def=partitions,
        code_version=code_version(
            1,
            categories=settings.categories,
            documents=settings.documents,
            characters=settings.model.characters,
            teachers=[(teacher.name, teacher.model, teacher.share) for teacher in teachers],
        ),
    )
    def document_labels(
        context: dg.AssetExecutionContext, deduplicated_corpus: pl.LazyFrame, teachers: Teachers
    ) -> dg.Output[pl.LazyFrame]:
        """What the teachers say of a sample of a source's documents (`LABELLED`); those of whom they say nothing that
        can be used are set aside. What the budget left out is missing, and is asked the next time."""
        documents = sample(deduplicated_corpus, settings.documents)
        answers, asked = teachers.ask(
            context,
            template(settings.categories),
            questions(documents, settings.model.characters),
            settings.budget,
        )
        rows = labelled(documents, answers)
        return dg.Output(
            rows.lazy(),
            metadata={
                **{
                    name: dg.MetadataValue.md(told) if isinstance(told, str) and "|" in told else told
                    for name, told in asked.metadata().items()
                },
                "documents_not_asked": documents.height - rows.height,
                **_counted(rows.lazy()),
            },
        )

    model: dict[str, Any] = {
        **common,
        "name": "label_model",
        "io_manager_key": "folders",
        "code_version": code_version(1, categories=settings.categories, model=settings.model, seed=seed),
        "description": "What was said of thousands of documents, learned: the model, and on held-out documents its F1, "
        "calibration and the threshold for a quality of 7 or more (`report.md`, `report.json`); `labels.html` shows "
        "twenty documents a label, `review.jsonl` has them to be corrected.",
    }

    def spec(labelled: dict[str, Path], corrections: Path) -> train.Spec:
        return train.Spec(
            labelled=labelled,
            corrections=corrections,
            categories=settings.categories,
            settings=settings.model,
            seed=seed,
        )

    @dg.asset(**model)
    def model_of_teachers(
        context: dg.AssetExecutionContext,
        compute: Compute,
        document_labels: dict[str, Path],
        label_corrections: Path,
    ) -> Iterator[dg.Output[Path]]:
        yield from compute.materialize(context, train.__name__, spec(document_labels, label_corrections))

    @dg.asset(**model)
    def model_of_persons(
        context: dg.AssetExecutionContext, compute: Compute, label_corrections: Path
    ) -> Iterator[dg.Output[Path]]:
        yield from compute.materialize(context, train.__name__, spec({}, label_corrections))

    label_model = model_of_teachers if teachers else model_of_persons

    @dg.asset_check(asset=label_model, blocking=True)
    def labels_are_learned(label_model: Path) -> dg.AssetCheckResult:
        """On held-out documents, the macro F1 of the topics, and of all that the mixture is filtered by, reaches the
        recipe's floor."""
        measured = json.loads((label_model / train.REPORT).read_text())
        found = {name: measured[name]["macro_f1"] for name in train.judged(measured, settings.keep)}
        low = [name for name, f1 in found.items() if (f1 or 0) < settings.model.min_f1]
        told = f"F1 of {' and '.join(low)} is below {settings.model.min_f1:g}: label more documents, or correct some"
        return dg.AssetCheckResult(
            passed=not low,
            description=told if low else None,
            metadata={f"{name}_f1": f1 or 0.0 for name, f1 in found.items()},
        )

    @dg.asset(
        **frames,
        partitions_def=partitions,
        code_version=code_version(1, keep=settings.keep, weights=settings.weights),
    )
    def labelled_corpus(
        context: dg.AssetExecutionContext, deduplicated_corpus: pl.LazyFrame, label_model: Path, batches: Batches
    ) -> dg.Output[pl.LazyFrame]:
        """A source's documents with what the label model says of them (`PREDICTED`) and how sure it is; what the recipe
        does not keep is set aside."""
        learned = LabelModel.load(label_model)
        if missing := missing_questions(learned, settings.keep, settings.weights):
            raise dg.Failure(
                f"labels.keep or labels.weights ask for {' and '.join(missing)}, which nobody has labelled: let a "
                "teacher label it, or write corrections",
                allow_retries=False,
            )
        version = f"{context.assets_def.code_versions_by_key[context.asset_key]}-{label_model.name}"
        judge = partial(label_batch, model=learned, keep=settings.keep, weights=settings.weights)
        name = f"labelled_corpus/{context.partition_key}"
        rows = batches.map(name, version, judge, deduplicated_corpus, workers="threads")
        return dg.Output(rows, metadata=_counted(rows))

    @dg.asset_check(
        asset=labelled_corpus,
        additional_ins={"before": dg.AssetIn("deduplicated_corpus")},
        partitions_def=partitions,
        name="no_row_is_lost",
    )
    def no_row_is_lost(labelled_corpus: Path, before: Path) -> dg.AssetCheckResult:
        """Rows in are rows kept and rows set aside."""
        files = (before / DATA, labelled_corpus / DATA, labelled_corpus / REMOVED)
        rows_in, kept, removed = (pl.scan_parquet(file).select(pl.len()).collect().item() for file in files)
        return dg.AssetCheckResult(
            passed=rows_in == kept + removed,
            metadata={"rows_in": rows_in, "rows_kept": kept, "rows_set_aside": removed},
        )

    return [
        correction_file,
        label_corrections,
        *([document_labels] if teachers else []),
        label_model,
        labelled_corpus,
        labels_are_learned,
        no_row_is_lost,
        set_aside_share_is_steady("labelled_corpus", partitions),
    ]


def _counted(rows: pl.LazyFrame) -> dict[str, Any]:
    """For an artifact's page: how often each label was given to what is kept."""
    return {"labels": dg.MetadataValue.md(markdown_table(counts(rows.filter(pl.col("rule").is_null()))))}
