"""Probabilities mean what they say, and thresholds are where F1 is highest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.labels.calibration import (
    best_threshold,
    calibrate,
    calibration_error,
    f1_scores,
    given_labels,
    probabilities,
)
from khmer_assets.labels.categories import Head

ONE, ANY = Head("validity", "one", ("a", "b", "c")), Head("topics", "any", ("a", "b", "c"))


def drawn(head: Head, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and targets drawn with the probabilities that a scale of 3 and biases of 1, 0 and -1 give them."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(count, 3))
    logits = 3 * scores + [1, 0, -1]
    if head.kind == "any":
        return scores, np.where(random.random((count, 3)) < 1 / (1 + np.exp(-logits)), 1, -1).astype(np.int8)
    chosen = (logits + random.gumbel(size=(count, 3))).argmax(axis=1)
    return scores, np.where(np.arange(3) == chosen[:, None], 1, -1).astype(np.int8)


@pytest.mark.parametrize("head", [ONE, ANY])
def test_scale_and_biases_are_found_again(head):
    scores, targets = drawn(head, 4000, 1)
    found = calibrate(head, scores, targets)
    assert found.scale == pytest.approx(3, rel=0.15)
    assert found.bias - found.bias[1] == pytest.approx([1, 0, -1], abs=0.3)
    scores, targets = drawn(head, 4000, 2)
    assert calibration_error(head, probabilities(head, scores, found), targets == 1) < 0.03
    raw = 1 / (1 + np.exp(-scores))
    assert calibration_error(ANY, raw, targets == 1) > 0.05


def test_nothing_known_is_no_fault():
    found = calibrate(ANY, np.zeros((4, 3)), np.zeros((4, 3), dtype=np.int8))
    assert np.isfinite([found.scale, *found.bias, *found.threshold]).all()


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.3001, 0.7, 1.0]), st.booleans()), min_size=1, max_size=12))
def test_no_other_threshold_has_a_higher_f1(pairs):
    given_, truth = np.array([p for p, _ in pairs]), np.array([t for _, t in pairs])

    def f1(threshold: float) -> float:
        return float(np.nan_to_num(f1_scores(truth[:, None], (given_ >= threshold)[:, None])[0]))

    if truth.any():
        found = f1(best_threshold(given_, truth))
        assert all(f1(threshold) <= found + 1e-12 for threshold in [*given_, 0.05, 0.5])


def test_a_text_has_as_many_topics_as_texts_had():
    scores, targets = drawn(ANY, 500, 3)
    first = scores.argmax(axis=1)
    single = np.where(np.arange(3) == first[:, None], 1, -1).astype(np.int8)
    calibration = calibrate(ANY, scores, single)
    assert (calibration.least, calibration.most) == (1, 1)
    assert (given_labels(ANY, probabilities(ANY, scores, calibration), calibration).sum(axis=1) == 1).all()
    targets[0] = -1
    assert calibrate(ANY, scores, targets).least == 0


def test_f1_of_a_label_that_does_not_occur_is_no_number():
    truth, chosen = np.array([[1, 0], [1, 0]], dtype=bool), np.array([[1, 0], [0, 0]], dtype=bool)
    assert f1_scores(truth, chosen)[0] == pytest.approx(2 / 3)
    assert np.isnan(f1_scores(truth, chosen)[1])
