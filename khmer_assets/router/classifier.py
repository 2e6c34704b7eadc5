"""Logistic regression over a text's n-grams, and over a few figures beside them (multinomial where there are more than
two classes). What does not belong here: what the classes are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from khmer_assets.server.text_features import BUCKETS, ngrams

STEPS = 200

Floats = NDArray[np.float64]


class Classifier(NamedTuple):
    """`weights` (buckets, classes), `of_figures` (figures, classes), `biases` (classes)."""

    weights: Floats
    of_figures: Floats
    biases: Floats

    def chances(self, texts: Sequence[Sequence[str]], figures: Floats) -> Floats:
        """Of each class (texts, classes); `texts[i]` are those that are seen together."""
        return _softmax(_matrix(texts) @ self.weights + figures @ self.of_figures + self.biases)


def fit(
    texts: Sequence[Sequence[str]], figures: Floats, targets: NDArray[np.int64], classes: int, strength: float
) -> Classifier:
    """Learn the class `targets[i]` of the texts `texts[i]`, which are seen together, with their `figures` (texts,
    figures).

    `strength`: how much the texts count against small weights (scikit-learn's C). What is fitted is the same each time.
    """
    from scipy.optimize import minimize
    from scipy.sparse import csr_matrix, hstack

    counts = _matrix(texts)
    seen = np.unique(counts.indices)  # an n-gram that no text has weighs nothing
    rows = hstack([counts[:, seen], csr_matrix(figures), csr_matrix(np.ones((len(texts), 1)))]).tocsr()
    truth = np.eye(classes)[targets]
    shape = (rows.shape[1], classes)

    def loss(values: Floats) -> tuple[float, Floats]:
        weights = values.reshape(shape)
        chances = _softmax(rows @ weights)
        told = -np.log(np.maximum((chances * truth).sum(1), 1e-12)).sum()
        slope = strength * (rows.T @ (chances - truth)) + weights
        slope[-1] -= weights[-1]  # the biases are free
        return float(strength * told + (weights[:-1] ** 2).sum() / 2), slope.ravel()

    found = minimize(loss, np.zeros(shape).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    fitted = found.x.reshape(shape)
    weights = np.zeros((BUCKETS, classes))
    weights[seen] = fitted[: len(seen)]
    return Classifier(weights, fitted[len(seen) : -1], fitted[-1])


def _matrix(texts: Sequence[Sequence[str]]) -> Any:  # a csr_matrix (texts, buckets)
    from scipy.sparse import csr_matrix

    found = [ngrams(*together) for together in texts]
    starts = np.cumsum([0, *(buckets.size for buckets, _ in found)])
    buckets = np.concatenate([one for one, _ in found]) if found else np.empty(0, np.int64)
    values = np.concatenate([one for _, one in found]) if found else np.empty(0)
    return csr_matrix((values.astype(np.float64), buckets, starts), shape=(len(texts), BUCKETS))


def _softmax(logits: Floats) -> Floats:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(odds / odds.sum(1, keepdims=True))
