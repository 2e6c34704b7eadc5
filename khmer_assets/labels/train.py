"""The payload that learns the label model, measures it on held-out labels, and shows it to people."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from khmer_assets.foundation import plots
from khmer_assets.foundation.settings import PositiveInt, Ratio, Settings
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.labels import review
from khmer_assets.labels.calibration import (
    Floats,
    Targets,
    calibration_error,
    f1_scores,
    given_labels,
    reliability,
    slices,
)
from khmer_assets.labels.categories import ANY_OF, GOOD, LABELLED, ONE_OF, PARTS, PERSON, Categories, Head, heads
from khmer_assets.labels.corrections import with_corrections
from khmer_assets.labels.labelled import Keep
from khmer_assets.labels.model import LabelModel, learn
from resources.payload import PayloadRun, Refusal
from resources.storage import DATA

REPORT = "report.json"
TRUST_IN_PERSONS = 3.0  # how many teachers' labels one of a person is worth
MOST_DOCUMENTS = 30_000  # that are learned from, which bounds memory and time
MIN_POSITIVES = 5  # labelled documents of a label, below which nothing can be learned of it


class LabelModelSettings(Settings):
    """`characters` of a document's beginning are seen. `held_out` of the labelled documents are measured with, and the
    macro F1 of the topics there must reach `min_f1`. With fewer than `min_documents` nothing is learned."""

    characters: PositiveInt = 3000
    held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    min_f1: Ratio = 0.4
    min_documents: Annotated[int, Field(ge=20)] = 100


class Spec(BaseModel):
    """Folders of document_labels by source, and of label_corrections."""

    labelled: dict[str, Path]
    corrections: Path | None
    categories: Categories
    settings: LabelModelSettings
    seed: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the model, `report.md`, `report.json`, `labels.html`, `review.jsonl` and plots; return the figures."""
    settings = spec.settings
    rows = pl.concat(
        [LABELLED.to_frame(), *(pl.read_parquet(folder / DATA).select(*LABELLED) for folder in spec.labelled.values())]
    )
    unknown = 0
    if spec.corrections is not None:
        rows, unknown = with_corrections(rows, pl.read_parquet(spec.corrections / DATA).select(*LABELLED))
    if rows.height < settings.min_documents:
        raise Refusal(
            f"{rows.height} documents have labels, expected at least {settings.min_documents}: let teachers label more "
            "(labels.documents, labels.budget), write more corrections, or lower labels.model.min_documents"
        )
    if rows.height > MOST_DOCUMENTS:
        run.log(f"{rows.height:,} documents have labels; {MOST_DOCUMENTS:,} are learned from, those of persons first")
        rows = rows.sort(pl.col("teacher") != PERSON, "content_hash").head(MOST_DOCUMENTS)
    asked = [head for head in heads(spec.categories) if (targets_of(rows, [head]) != 0).any()]
    targets = targets_of(rows, asked)
    trust = np.where(rows["teacher"] == PERSON, TRUST_IN_PERSONS, 1.0).astype(np.float32)
    held_out = _held_out(rows, settings.held_out, spec.seed)
    run.log(f"learning from {rows.height:,} labelled documents, of which {held_out.sum():,} are held out first")
    began = time.process_time()
    learned = learn(rows["text"].to_list(), asked, targets, trust, held_out, settings.characters, spec.seed)
    learning = time.process_time() - began
    model = learned.model
    given = model.calibrated(learned.scores)
    measured = {
        name: figures
        for head in asked
        for name, figures in [(head.name, measures(model, head, given[head.name], _of(head, asked, targets), held_out))]
    }
    model.save(run.output)
    labels, questions = tables(measured)
    (run.output / REPORT).write_text(json.dumps(measured, ensure_ascii=False, indent=1))
    shown = review.chosen(rows, asked, targets, given, model.verdicts(given))
    review.write(shown, spec.categories, run.output)
    figure = _reliability_picture(asked, given, targets, held_out)
    figure.savefig(run.output / "calibration.png", dpi=110)
    few = labels.filter(pl.col("labelled") < MIN_POSITIVES, ~pl.col("question").is_in(list(PARTS)))
    page = f"# Label model\n\n{markdown_table(questions)}\n\n{markdown_table(labels)}\n\n![](calibration.png)\n"
    (run.output / "report.md").write_text(page)
    good = measured.get("good_quality")
    return {
        "documents": rows.height,
        "documents_held_out": int(held_out.sum()),
        "documents_of_persons": int((rows["teacher"] == PERSON).sum()),
        "corrections_of_unknown_documents": unknown,
        **{f"{name}_f1": figures["macro_f1"] for name, figures in measured.items() if figures["macro_f1"] is not None},
        **{f"{name}_calibration_error": figures["calibration_error"] for name, figures in measured.items()},
        **({"good_quality_threshold": good["labels"]["good_quality"]["threshold"]} if good else {}),
        "processor_seconds": round(learning, 1),
        "questions": markdown_table(questions),
        "labels": markdown_table(labels),
        "labels_with_too_few_documents": ", ".join(few.select(pl.format("{} {}", "question", "label")).to_series()),
        "calibration_plot": plots.as_markdown(figure),
        "examples": review.markdown(shown),
    }


def judged(measured: Mapping[str, Any], keep: Keep) -> list[str]:
    """The questions that must be learned well: the topics, where somebody told them, and what documents are kept by."""
    wanted = {"topics": True, "validity": keep.valid, "unsafe": keep.safe, "good_quality": keep.good_quality}
    return [name for name, asked in wanted.items() if asked and name in measured]


def targets_of(rows: pl.DataFrame, asked: list[Head]) -> Targets:
    """1 where a row (`LABELLED`) has a label, -1 where it has not, 0 where nobody has said; all questions in turn."""
    columns = []
    for head in asked:
        if head.name in ONE_OF or head.name in PARTS:
            said = [pl.col(head.name).cast(pl.String) == label for label in head.labels]
        elif head.name in ANY_OF:
            said = [pl.col(head.name).list.contains(label) for label in head.labels]
        elif head.name == "unsafe":
            said = [pl.col("toxicity").list.len() > 0]
        else:
            said = [pl.col("quality") >= GOOD]
        columns += [pl.when(one).then(1).when(~one).then(-1).otherwise(0).cast(pl.Int8) for one in said]
    return rows.select(column.alias(str(number)) for number, column in enumerate(columns)).to_numpy().astype(np.int8)


def _of(head: Head, asked: list[Head], targets: Targets) -> Targets:
    return targets[:, slices(asked)[head.name]]


def _held_out(rows: pl.DataFrame, share: float, seed: int) -> NDArray[np.bool_]:
    """Decided by the text and the seed, so that a document stays held out when others are labelled."""
    mask = np.uint64(np.random.default_rng(seed).integers(2**32))
    digits = rows["content_hash"].str.slice(0, 8).str.to_integer(base=16, dtype=pl.Int64).to_numpy().astype(np.uint64)
    return np.asarray((digits ^ mask) < share * 2**32)


def measures(
    model: LabelModel, head: Head, given: Floats, targets: Targets, held_out: NDArray[np.bool_]
) -> dict[str, Any]:
    """How well a question is answered, where the answers are known, on held-out documents: F1 by label and their mean
    over the labels that occur there and had enough documents to be learned of, accuracy of a question with one answer,
    and the expected calibration error. `labelled` are all documents that have a label, `documents` those held out."""
    labelled = (targets == 1).sum(axis=0)
    known = (targets != 0).any(axis=1) & held_out
    given, truth = given[known], targets[known] == 1
    chosen = given_labels(head, given, model.calibrations[head.name])
    by_label = f1_scores(truth, chosen)
    occur = truth.any(axis=0) & (labelled >= MIN_POSITIVES)
    return {
        "documents": int(known.sum()),
        "macro_f1": round(float(by_label[occur].mean()), 4) if occur.any() else None,
        "accuracy": round(float((truth & chosen).any(axis=1).mean()), 4)
        if head.kind == "one" and known.any()
        else None,
        "calibration_error": round(calibration_error(head, given, truth), 4),
        "labels": {
            label: {
                "labelled": int(labelled[number]),
                "documents": int(truth[:, number].sum()),
                "given": int(chosen[:, number].sum()),
                "f1": None if np.isnan(by_label[number]) else round(float(by_label[number]), 4),
                "threshold": round(float(model.calibrations[head.name].threshold[number]), 4),
            }
            for number, label in enumerate(head.labels)
        },
    }


def tables(measured: dict[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A row a label, and a row a question, of held-out documents."""
    labels = [
        {"question": name, "label": label, **one}
        for name, figures in measured.items()
        for label, one in figures["labels"].items()
    ]
    questions = [
        {"question": name, **{key: value for key, value in figures.items() if key != "labels"}}
        for name, figures in measured.items()
    ]
    return pl.DataFrame(labels, infer_schema_length=None), pl.DataFrame(questions, infer_schema_length=None)


def _reliability_picture(
    asked: list[Head], given: dict[str, Floats], targets: Targets, held_out: NDArray[np.bool_]
) -> Any:
    figure = plots.new_figure(height=4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    for head in asked:
        if head.name in ("validity", "topics", "unsafe", "good_quality"):
            truth = _of(head, asked, targets)[held_out]
            known = (truth != 0).any(axis=1)
            sure, right, counts = reliability(head, given[head.name][held_out][known], truth[known] == 1)
            axes.plot(sure[counts > 0], right[counts > 0], marker="o", label=head.name)
    axes.set(xlabel="probability that the model gives", ylabel="share that is true", title="Held-out documents")
    axes.legend()
    return figure
