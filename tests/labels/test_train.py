"""The payload measures what it learned on documents that it has not seen, and refuses what teaches nothing."""

import json

import polars as pl
import pytest

from khmer_assets.labels import train
from khmer_assets.labels.categories import LABELLED
from khmer_assets.labels.corrections import CORRECTION
from khmer_assets.labels.labelled import Keep
from khmer_assets.labels.model import LabelModel
from khmer_assets.labels.train import LabelModelSettings, Spec
from resources.payload import PayloadRun, Refusal
from tests.labels.conftest import labelled_documents


def folder_of(folder, rows: pl.DataFrame):
    folder.mkdir()
    rows.write_parquet(folder / "data.parquet")
    return folder


@pytest.fixture
def spec(tmp_path, categories):
    def make(documents: int, corrections: pl.DataFrame | None = None) -> Spec:
        return Spec(
            labelled={"news": folder_of(tmp_path / "news", labelled_documents("news", documents))} if documents else {},
            corrections=folder_of(tmp_path / "corrections", corrections if corrections is not None else
                                  CORRECTION.to_frame()),
            categories=categories,
            settings=LabelModelSettings(),
            seed=1,
        )  # fmt: skip

    return make


def test_the_model_and_its_figures_on_held_out_labels_are_written(spec, tmp_path):
    run = PayloadRun(tmp_path / "work")
    figures = train.main(spec(240), run)
    assert {file.name for file in run.output.iterdir()} == {
        "weights.safetensors", "label_model.json", "report.md", "report.json", "labels.html", "review.jsonl",
        "calibration.png"}  # fmt: skip
    assert 30 < figures["documents_held_out"] < 70
    assert figures["topics_f1"] > 0.9
    assert figures["good_quality_f1"] > 0.9
    assert 0 < figures["good_quality_threshold"] < 1
    assert figures["topics_calibration_error"] < 0.1
    report = json.loads((run.output / "report.json").read_text())
    assert report["topics"]["documents"] == figures["documents_held_out"]
    assert report["topics"]["labels"]["health"]["f1"] > 0.8
    assert "topics health" not in figures["labels_with_too_few_documents"]
    assert "topics religion" in figures["labels_with_too_few_documents"]


def test_persons_alone_can_teach_it_and_only_what_they_said(spec, tmp_path):
    rows = labelled_documents("corrections", 150).select("id", "source", "text", "content_hash", "topics")
    said = rows.with_columns(
        pl.lit(None, kind).alias(name) for name, kind in LABELLED.items() if name not in rows.columns
    ).with_columns(teacher=pl.lit("person"))
    run = PayloadRun(tmp_path / "work")
    figures = train.main(spec(0, said.select(*LABELLED)), run)
    assert figures["documents_of_persons"] == 150
    assert figures["topics_f1"] > 0.9
    assert "validity_f1" not in figures
    assert [head.name for head in LabelModel.load(run.output).heads] == ["topics"]


def test_too_few_documents_are_refused_with_what_to_do(spec, tmp_path):
    with pytest.raises(Refusal, match=r"12 documents have labels, expected at least 100: let teachers label more"):
        train.main(spec(12), PayloadRun(tmp_path / "work"))


def test_a_document_stays_held_out_when_others_are_labelled():
    few, many = labelled_documents("news", 50), labelled_documents("news", 90)
    assert train._held_out(many, 0.2, 1)[:50].tolist() == train._held_out(few, 0.2, 1).tolist()
    assert train._held_out(many, 0.2, 1).tolist() != train._held_out(many, 0.2, 2).tolist()


def test_what_the_mixture_is_filtered_by_must_be_learned_well():
    measured = {"topics": {}, "unsafe": {}, "good_quality": {}}
    assert train.judged(measured, Keep()) == ["topics"]
    assert train.judged(measured, Keep(safe=True, valid=True)) == ["topics", "unsafe"]


def test_texts_of_the_same_content_are_on_one_side():
    rows = pl.concat([labelled_documents("a", 40), labelled_documents("b", 40)])
    held_out = train._held_out(rows, 0.3, 1)
    assert held_out[:40].tolist() == held_out[40:].tolist()
