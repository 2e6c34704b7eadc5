"""Which documents teachers are asked of, in which words, and what becomes of their answers."""

import json

import polars as pl
import pytest

from khmer_assets.labels.categories import LABELLED
from khmer_assets.labels.questions import counts, labelled, questions, sample, template
from khmer_assets.sources.documents import SET_ASIDE
from khmer_assets.teachers.asking import Answer
from tests.labels.conftest import documents, text_of, verdict


def test_the_sample_has_every_group_in_its_share_and_keeps_its_documents():
    corpus = documents("news", 400).with_columns(
        language=pl.Series(["khm"] * 300 + ["eng"] * 100),
        text=pl.col("text") + pl.Series(["ក" * 800] * 40 + [""] * 360),
    )
    chosen = sample(corpus.lazy(), 40)
    assert chosen.height == 40
    assert chosen.filter(language="eng").height == pytest.approx(10, abs=1)
    assert chosen.filter(pl.col("text").str.len_chars() > 800).height == pytest.approx(4, abs=1)
    assert sample(corpus.lazy(), 40).equals(chosen)
    grown = documents("news", 440).with_columns(pl.lit("khm").alias("language"))
    before = set(sample(grown.head(400).lazy(), 40)["id"])
    assert len(before & set(sample(grown.lazy(), 44)["id"])) >= 32


def test_a_corpus_that_is_smaller_is_asked_of_as_a_whole():
    assert sample(documents("news", 3).lazy(), 40).height == 3
    assert sample(documents("news", 0).lazy(), 40).height == 0


def test_teachers_read_the_names_in_both_languages_and_the_beginning_of_the_text(categories):
    asked = template(categories)
    assert asked.rows_at_once == 10
    for said in ("agriculture (កសិកម្ម)", "ការប្រមាថ", "helpfulness, 0 to 3"):
        assert said in (asked.system or "")
    (first, *_) = questions(documents("news", 2), 12)
    assert first == {"id": "0", "text": text_of(0)[0][:12]}


def test_answers_become_labels_and_faults_are_set_aside(categories):
    chosen = sample(documents("news", 5).lazy(), 5)
    first, second, third, *_ = map(str, range(5))
    answers = [
        Answer(first, "sage", {**verdict(text_of(1)[0]), "topics": ["law", "law"]}, None, None, None, 1, 1),
        Answer(second, "sage", {**verdict(text_of(1)[0]), **dict.fromkeys(("accuracy", "completeness", "coherence",
               "helpfulness"), 0)}, None, None, None, 1, 1),
        Answer(third, "sage", None, "refused", None, "it says that it cannot", 1, 1),
    ]  # fmt: skip
    rows = labelled(chosen, answers)
    assert rows.schema == {**LABELLED, **SET_ASIDE}
    by_id = {str(place): row for place, row in enumerate(rows.to_dicts())}
    assert rows["id"].to_list() == chosen["id"].to_list()[:3]
    assert by_id[first]["topics"] == ["law"]
    assert (by_id[first]["quality"], by_id[second]["quality"], by_id[third]["quality"]) == (9, 1, None)
    assert by_id[third]["rule"] == "refused"
    assert len(by_id) == 3  # the others were not asked
    told = counts(rows.lazy().filter(pl.col("rule").is_null()))
    assert told.filter(question="topics", label="law")["documents"].item() == 1
    assert json.dumps(told.to_dicts())


def test_two_documents_of_one_id_get_their_own_labels():
    chosen = (
        documents("news", 2).with_columns(id=pl.lit("same")).select("id", "source", "language", "text", "content_hash")
    )
    verdicts = [verdict(text) for text in chosen["text"]]
    answers = [Answer(row["id"], "sage", said, None, None, None, 1, 1)
               for row, said in zip(questions(chosen, 99), verdicts, strict=True)]  # fmt: skip
    assert labelled(chosen, answers)["topics"].to_list() == [said["topics"] for said in verdicts]
