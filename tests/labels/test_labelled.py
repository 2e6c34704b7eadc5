"""Every document gets the model's labels with their probabilities; the recipe's choice sets aside and weighs."""

from functools import cache

import numpy as np
import polars as pl
import pytest

from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.labels.categories import CATEGORIES, Categories, heads
from khmer_assets.labels.labelled import PREDICTED, Keep, Weights, label_batch, missing_questions
from khmer_assets.labels.model import LabelModel, learn
from khmer_assets.labels.train import targets_of
from khmer_assets.sources.documents import DOCUMENT, SET_ASIDE
from tests.labels.conftest import documents, labelled_documents, verdict

COLUMNS = {**DOCUMENT, **PREDICTED, **SET_ASIDE}


@cache
def model(*questions: str) -> LabelModel:
    """One that learned these questions, or all."""
    rows = labelled_documents("news", 200)
    asked = [h for h in heads(Categories.model_validate(read_yaml(CATEGORIES))) if not questions or h.name in questions]
    trust, held_out = np.ones(200, dtype=np.float32), np.arange(200) % 5 == 0
    return learn(rows["text"].to_list(), asked, targets_of(rows, asked), trust, held_out, 3000, 1).model


def judged(keep: Keep | None = None, weights: Weights | None = None, count: int = 60) -> pl.DataFrame:
    return label_batch(documents("news", count), model(), keep or Keep(), weights or Weights())


def test_a_document_keeps_its_columns_and_gets_labels_with_their_probabilities():
    rows = judged()
    assert rows.schema == COLUMNS
    assert rows["rule"].null_count() == 60
    assert set(rows["weight"]) == {1.0}
    for name in ("topics", "toxicity"):
        assert (rows[name].list.len() == rows[f"{name}_probability"].list.len()).all()
    assert rows["topics_probability"].list.first().min() > 0
    assert rows["quality"].is_between(1, 10).all()
    right = [verdict(text) for text in rows["text"]]
    assert np.mean(rows["good_quality"].to_numpy() == [v["accuracy"] == 3 for v in right]) > 0.9


@pytest.mark.parametrize(
    ("keep", "rule", "broken"),
    [
        (Keep(good_quality=True), "low_quality", ~pl.col("good_quality")),
        (Keep(safe=True), "unsafe", ~pl.col("safe")),
        (Keep(valid=True), "invalid", pl.col("validity") == "invalid"),
    ],
)
def test_what_the_recipe_does_not_keep_is_set_aside_with_the_probability(keep, rule, broken):
    rows = judged(keep)
    aside = rows.filter(pl.col("rule").is_not_null())
    assert 0 < aside.height < rows.height
    assert aside.equals(rows.filter(broken))
    assert set(aside["rule"]) == {rule}
    assert aside["measure"].is_between(0, 1).all()
    assert not aside["reason"].str.contains("None").any()


def test_a_document_that_breaks_two_rules_is_set_aside_once():
    rows = judged(Keep(good_quality=True, safe=True, valid=True))
    assert set(rows.filter(~pl.col("safe") & (pl.col("validity") != "invalid"))["rule"]) == {"unsafe"}


def test_weights_are_of_the_topic_and_of_good_documents():
    rows = judged(weights=Weights(topics={"health": 3, "sports": 0.5}, good_quality=2))
    for topic, factor in (("health", 3.0), ("sports", 0.5), ("agriculture", 1.0)):
        alone = rows.filter(pl.col("topics").list.join(" ") == topic)
        expected = pl.when("good_quality").then(2 * factor).otherwise(factor)
        assert alone.height
        assert alone.filter(pl.col("weight") != expected).is_empty()


def test_what_nobody_labelled_is_null_and_is_missed_where_the_recipe_needs_it():
    partial = model("topics")
    rows = label_batch(documents("news", 8), partial, Keep(), Weights(topics={"health": 2}))
    assert rows.schema == COLUMNS
    assert rows["topics"].null_count() == 0
    assert rows.select("validity", "safe", "quality", "good_quality").null_count().row(0) == (8, 8, 8, 8)
    assert missing_questions(partial, Keep(), Weights(topics={"health": 2})) == []
    assert missing_questions(partial, Keep(safe=True), Weights(good_quality=2)) == ["unsafe", "good_quality"]


def test_no_documents_are_no_fault():
    assert judged(Keep(safe=True), count=0).schema == COLUMNS
