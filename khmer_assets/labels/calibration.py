"""From what linear classifiers say to probabilities, and from those to verdicts.

All labels of a question share a temperature, and each has a bias of its own (vector scaling: Guo et al. 2017, "On
Calibration of Modern Neural Networks"), fitted on texts that the classifiers were not trained on. A label is given
from the probability at which F1 is highest there; where few texts have it, from nearer that of all labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from khmer_assets.labels.categories import Head

BINS = 15  # of the expected calibration error, as Guo et al. have them
FEW = 20  # texts with a label, at which its own threshold and that of its question count alike
RIDGE = 1.0  # how much a bias is held back, in texts

Floats = NDArray[np.float64]
Targets = NDArray[np.int8]


@dataclass(frozen=True)
class Calibration:
    """`scale` of a question's scores, and `bias` and `threshold` of each of its labels. `least` and `most`: how many
    labels a text had that was calibrated with."""

    scale: float
    bias: Floats
    threshold: Floats
    least: int
    most: int


def slices(heads: Sequence[Head]) -> dict[str, slice]:
    """Where each question's labels stand among the columns of scores and targets."""
    found, start = {}, 0
    for head in heads:
        found[head.name] = slice(start, start + len(head.labels))
        start += len(head.labels)
    return found


def probabilities(head: Head, scores: NDArray, calibration: Calibration) -> Floats:
    """The probability of each label (texts, labels); those of a question with `one` answer sum to 1."""
    return _probabilities(head.kind == "one", scores.astype(np.float64), calibration.scale, calibration.bias)


def _probabilities(one: bool, scores: Floats, scale: float, bias: Floats) -> Floats:
    logits = scores * scale + bias
    if one:
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)
    return 1 / (1 + np.exp(-np.clip(logits, -40, 40)))


def calibrate(head: Head, scores: NDArray, targets: Targets) -> Calibration:
    """Fit a question's calibration to scores and targets (1, -1, or 0 where nobody knows) of held-out texts."""
    from scipy.optimize import minimize

    known = (targets != 0).any(axis=1)
    scores, truth = scores[known].astype(np.float64), (targets[known] == 1).astype(np.float64)
    count = max(len(scores), 1)

    def loss(values: Floats) -> tuple[float, Floats]:
        scale, bias = np.exp(values[0]), values[1:]
        given = _probabilities(head.kind == "one", scores, scale, bias)
        tiny = 1e-12
        told = truth * np.log(given + tiny)
        if head.kind == "any":
            told += (1 - truth) * np.log(1 - given + tiny)
        error = given - truth
        slope = np.concatenate([[(error * scores).sum() * scale], error.sum(axis=0) + RIDGE * (bias - start[1:])])
        return float(-told.sum() + RIDGE / 2 * ((bias - start[1:]) ** 2).sum()) / count, slope / count

    start = np.zeros(1 + len(head.labels))
    start[0] = np.log(2.0)
    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(-3.0, 5.0), *[(-20.0, 20.0)] * len(head.labels)]
    )
    scale, bias = float(np.exp(found.x[0])), found.x[1:]
    given = _probabilities(head.kind == "one", scores, scale, bias)
    labels = truth.sum(axis=1)
    least, most = int(labels.min(initial=len(head.labels))), int(labels.max(initial=1))
    return Calibration(scale, bias, _thresholds(head, given, truth == 1), min(least, 1), most)


def _thresholds(head: Head, given: Floats, truth: NDArray[np.bool_]) -> Floats:
    if head.kind == "one" or not len(given):
        return np.full(len(head.labels), 0.5)
    shared = best_threshold(given.ravel(), truth.ravel())
    counts = truth.sum(axis=0)
    own = np.array([best_threshold(given[:, label], truth[:, label]) for label in range(len(head.labels))])
    return (counts * own + FEW * shared) / (counts + FEW)


def best_threshold(given: Floats, truth: NDArray[np.bool_]) -> float:
    """The probability from which a label is given so that its F1 is highest; between the two texts that it parts."""
    if not truth.any():
        return 0.5
    order = np.argsort(-given, kind="stable")
    ranked, hits = given[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + truth.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = 0  # texts alike cannot be parted
    best = int(np.argmax(f1))
    below = ranked[best + 1] if best + 1 < len(ranked) else 0.0
    return float((ranked[best] + below) / 2)


def given_labels(head: Head, given: Floats, calibration: Calibration) -> NDArray[np.bool_]:
    """Which labels are given to each text: those that reach their threshold, as many as texts usually have."""
    if head.kind == "one":
        return np.arange(given.shape[1]) == given.argmax(axis=1)[:, None]
    rank = (-given / np.maximum(calibration.threshold, 1e-6)).argsort(axis=1, kind="stable").argsort(axis=1)
    return ((given >= calibration.threshold) & (rank < calibration.most)) | (rank < calibration.least)


def f1_scores(truth: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> Floats:
    """F1 of each label; NaN where no text has it and none is given it."""
    hits, all_of_both = (truth & chosen).sum(axis=0), truth.sum(axis=0) + chosen.sum(axis=0)
    return np.where(all_of_both > 0, 2 * hits / np.maximum(all_of_both, 1), np.nan)


def reliability(head: Head, given: Floats, truth: NDArray[np.bool_]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean probability, share that is true and number of verdicts in each bin of probability; of a question with one
    answer the likeliest label's."""
    if head.kind == "one":
        likeliest = given.argmax(axis=1)
        sure, right = given.max(axis=1, initial=0), truth[np.arange(len(truth)), likeliest]
    else:
        sure, right = given.ravel(), truth.ravel()
    bins = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    size = np.maximum(counts, 1)
    return (
        np.bincount(bins, sure, minlength=BINS) / size,
        np.bincount(bins, right.astype(np.float64), minlength=BINS) / size,
        counts,
    )


def calibration_error(head: Head, given: Floats, truth: NDArray[np.bool_]) -> float:
    """The expected calibration error: how far probabilities are from the shares that are true, over the bins."""
    sure, right, counts = reliability(head, given, truth)
    return float((counts * np.abs(sure - right)).sum() / max(counts.sum(), 1))
