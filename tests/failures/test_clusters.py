"""Failures are grouped by what they are about, and no half of them decides what the other is measured with."""

import numpy as np
import polars as pl
import pytest

from khmer_assets.corpus.semantic import SemanticSearch
from khmer_assets.failures import clusters
from khmer_assets.failures.find import FAILURE, failure

ABOUT = {
    "capital": "តើរាជធានីនៃប្រទេស{}ឈ្មោះអ្វី?",
    "month": "តើខែ{}មានប៉ុន្មានថ្ងៃ?",
    "sum": "{} + {} = ?",
    "opposite": 'What is the opposite of "{}"?',
    "animal": "What does a {} eat?",
}
NAMES = ["ថៃ", "ឡាវ", "ចិន", "ជប៉ុន", "កូរ៉េ", "បារាំង", "រុស្ស៊ី", "ឥណ្ឌា", "អេហ្ស៊ីប", "កាណាដា", "ប៉េរូ", "គុយបា"]


def failures(kinds=tuple(ABOUT), names=NAMES) -> pl.DataFrame:
    rows = [
        failure("chats", f"{kind}-{name}", [{"role": "user", "content": ABOUT[kind].format(name, name)}], "?", "!", "x")
        for kind in kinds
        for name in names
    ]
    return pl.DataFrame(rows, schema=FAILURE)


def test_what_is_about_the_same_is_together():
    rows = clusters.clustered(failures(), SemanticSearch(), seed=1)
    kinds = rows.with_columns(kind=pl.col("id").str.split("-").list.first())
    largest = kinds.group_by("cluster").agg(pl.col("kind").value_counts(sort=True).first().struct.field("count"))
    assert largest["count"].sum() > 0.8 * rows.height, "a cluster is mostly of one kind"
    assert rows["name"].n_unique() == rows["cluster"].n_unique(), "and has a name of its own"
    assert rows.equals(clusters.clustered(failures(), SemanticSearch(), seed=1))
    (nearest,) = clusters.cluster_of([ABOUT["capital"].format("ម៉ិកស៊ិក")], rows, SemanticSearch())
    assert nearest in rows.filter(pl.col("id").str.starts_with("capital"))["cluster"]


def test_between_four_and_ten_clusters_are_made_where_there_are_as_many_different_failures():
    for names, least, most in ((NAMES[:1], 1, 5), (NAMES, 4, 10)):
        rows = clusters.clustered(failures(names=names), SemanticSearch(), seed=2)
        assert least <= rows["cluster"].n_unique() <= most


def test_halves_are_told_by_what_is_asked_so_that_who_asks_the_same_is_in_one():
    rows = failures()
    part = dict(zip(rows["id"], clusters.parts(rows), strict=True))
    assert 0.3 < sum(one == clusters.LEARNED for one in part.values()) / len(part) < 0.7
    reversed_part = dict(zip(rows["id"].reverse(), clusters.parts(rows.reverse()), strict=True))
    assert part == reversed_part, "whatever stands beside it"
    loud = rows.with_columns(
        messages=pl.Series([[m | {"content": m["content"].upper() + "?"} for m in one] for one in rows["messages"]])
    )
    assert clusters.parts(loud) == list(part.values())


def test_too_few_failures_are_refused():
    with pytest.raises(ValueError, match="1 failures are too few"):
        clusters.clustered(failures(("sum",), ["ថៃ"]), SemanticSearch(), seed=1)
    with pytest.raises(ValueError, match="0 failures are too few"):
        clusters.clustered(FAILURE.to_frame(), SemanticSearch(), seed=1)


def test_the_silhouette_is_that_of_its_definition():
    angles = np.array([0.0, 0.1, 1.5, 1.6, 3.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    label = np.array([0, 0, 1, 1, 2])

    def distance(one: int, other: int) -> float:
        return float(1 - vectors[one] @ vectors[other])

    scores = []
    for one in range(4):
        own = np.mean([distance(one, other) for other in range(5) if label[other] == label[one] and other != one])
        others = min(
            np.mean([distance(one, other) for other in range(5) if label[other] == group])
            for group in {0, 1, 2} - {int(label[one])}
        )
        scores.append((others - own) / max(own, others))
    assert clusters.silhouette(vectors, label) == pytest.approx(sum(scores) / 5, abs=1e-5)
    assert clusters.silhouette(vectors, np.zeros(5, dtype=np.int64)) == -1


def test_for_people_a_cluster_is_its_name_its_parts_and_its_nearest_examples():
    rows = clusters.clustered(failures(("sum", "animal")), SemanticSearch(), seed=1)
    table = clusters.told(rows)
    assert table["failures"].sum() == rows.height == (table["learned from"] + table["measured with"]).sum()
    assert all(
        " / " in examples or size == 1 for examples, size in table.select("nearest examples", "failures").iter_rows()
    )
