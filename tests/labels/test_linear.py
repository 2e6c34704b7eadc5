"""The classifiers reach the optimum of what they minimize, and know nothing of what nobody labelled."""

import numpy as np
import pytest

from khmer_assets.labels import linear
from khmer_assets.labels.features import BUCKETS, ngram_counts
from tests.labels.conftest import WORDS, text_of

TEXTS, TOPICS = zip(*(text_of(number) for number in range(90)), strict=True)
TARGETS = np.array([[1 if topic == own else -1 for own in WORDS] for topic in TOPICS], dtype=np.int8)
ALL = np.arange(len(TEXTS))


@pytest.fixture(scope="module")
def features():
    counts = ngram_counts(TEXTS, 3000)
    return linear.weighed(counts, linear.rarity(counts, ALL))


def test_a_text_has_length_one(features):
    squares = np.add.reduceat(features.counts.astype(float) ** 2, features.starts[:-1])
    assert squares == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)


@pytest.mark.slow
def test_the_weights_are_those_of_liblinear(features, monkeypatch):
    from scipy.sparse import csr_matrix
    from sklearn.svm import LinearSVC

    monkeypatch.setattr(linear, "_costs", lambda known: np.ones((2, known.shape[1]), dtype=np.float32))
    trust = np.ones(len(TEXTS), dtype=np.float32)
    weights = linear.fit(features, ALL, TARGETS, trust, 1)
    matrix = csr_matrix((features.counts, features.buckets, features.starts), shape=(len(TEXTS), BUCKETS))
    peer = LinearSVC(C=1.0, tol=1e-5).fit(matrix, TARGETS[:, 0] == 1)
    ours = matrix @ weights[:BUCKETS, 0] + weights[BUCKETS, 0]
    assert ours == pytest.approx(peer.decision_function(matrix), abs=0.06)


def test_a_text_that_nobody_labelled_changes_nothing(features):
    trust = np.ones(len(TEXTS), dtype=np.float32)
    targets = np.concatenate([TARGETS, np.zeros_like(TARGETS[:, :1])], axis=1)
    weights = linear.fit(features, ALL, targets, trust, 1)
    assert not weights[:, 3].any()
    assert weights[:, :3].any(axis=0).all()


def test_a_person_outweighs_a_teacher_who_says_the_contrary():
    same = ngram_counts([TEXTS[0], TEXTS[0]], 3000)
    weighed = linear.weighed(same, linear.rarity(same, np.arange(2)))
    targets = np.array([[1], [-1]], dtype=np.int8)
    for trust, sign in (([3.0, 1.0], 1), ([1.0, 3.0], -1)):
        weights = linear.fit(weighed, np.arange(2), targets, np.array(trust, dtype=np.float32), 1)
        score = linear.Classifiers.of(weights).scores(same, linear.rarity(same, np.arange(2)))[0, 0]
        assert score * sign > 0


def test_the_same_labels_give_the_same_weights(features):
    trust = np.ones(len(TEXTS), dtype=np.float32)
    one, two = (linear.fit(features, ALL, TARGETS, trust, 1) for _ in range(2))
    assert np.array_equal(one, two)


def test_weights_in_a_byte_score_like_whole_ones(features):
    counts = ngram_counts(TEXTS, 3000)
    weights = linear.fit(features, ALL, TARGETS, np.ones(len(TEXTS), dtype=np.float32), 1)
    found = linear.Classifiers.of(weights).scores(counts, linear.rarity(counts, ALL))
    whole = np.array(
        [
            weights[features.buckets[start:end]].T @ features.counts[start:end] + weights[BUCKETS]
            for start, end in zip(features.starts[:-1], features.starts[1:], strict=True)
        ]
    )
    assert found == pytest.approx(whole, abs=0.02)
