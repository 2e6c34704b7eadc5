"""Many linear classifiers over the same texts, trained side by side.

Each label has a support vector machine of its own with a squared hinge loss, trained by dual coordinate descent (Hsieh
et al. 2008, "A Dual Coordinate Descent Method for Large-scale Linear SVM"). A text is looked at once for all labels.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from khmer_assets.labels.features import BUCKETS, Counts

# On five kinds of Khmer text and on the eight programs of an office suite's help 1 to 4 were alike, and 0.3 was worse.
COST = 2.0
PASSES = 12
TOLERANCE = 0.05  # the largest violation of the conditions of the optimum, at which a pass is the last


def rarity(counts: Counts, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The weight of each bucket: the smoothed inverse share of the texts `rows` that it stands in, as a logarithm, plus
    1."""
    among = np.zeros(len(counts), dtype=np.bool_)
    among[rows] = True
    texts = np.bincount(counts.buckets[np.repeat(among, np.diff(counts.starts))], minlength=BUCKETS)
    return (np.log((1 + len(rows)) / (1 + texts)) + 1).astype(np.float32)


def weighed(counts: Counts, rarities: NDArray[np.float32]) -> Counts:
    """Counts as (1 + ln count) times the rarity, each text of length 1."""
    values = (1 + np.log(counts.counts)) * rarities[counts.buckets]
    sizes = np.diff(counts.starts)
    lengths = np.sqrt(np.bincount(np.repeat(np.arange(len(counts)), sizes), values**2, minlength=len(counts)))
    scale = 1 / np.maximum(lengths, 1e-12)
    return Counts(counts.starts, counts.buckets, (values * np.repeat(scale, sizes)).astype(np.float32))


def fit(
    features: Counts, rows: NDArray[np.int64], targets: NDArray[np.int8], trust: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    """Weights (BUCKETS + 1, labels) of the classifiers; the last row is their bias.

    `rows` are the texts to learn from. `targets` (texts, labels): 1 where a text has the label, -1 where it has not, 0
    where nobody knows. `trust` (texts): how much an error counts.
    """
    return _descend(
        features.starts, features.buckets, features.counts, rows, targets, _costs(targets[rows]), trust, seed
    )


def _costs(known: NDArray[np.int8]) -> NDArray[np.float32]:
    """The cost of an error (2, labels) on texts without and with a label: rare labels count more, by the square root
    of how much rarer they are, which keeps a few wrong labels from weighing as much as a thousand."""
    positive, negative = (known == 1).sum(axis=0), (known == -1).sum(axis=0)
    share = np.sqrt((negative + 1) / (positive + 1))
    return (COST * np.stack([np.ones_like(share), np.clip(share, 1, 10)])).astype(np.float32)


@njit(cache=True, nogil=True, fastmath=True)
def _descend(
    starts: NDArray[np.int64],
    buckets: NDArray[np.int32],
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    targets: NDArray[np.int8],
    costs: NDArray[np.float32],
    trust: NDArray[np.float32],
    seed: int,
) -> NDArray[np.float32]:
    labels = targets.shape[1]
    weights = np.zeros((BUCKETS + 1, labels), dtype=np.float32)
    alphas = np.zeros((rows.size, labels), dtype=np.float32)
    scores = np.empty(labels, dtype=np.float32)
    steps = np.empty(labels, dtype=np.float32)
    np.random.seed(seed)
    for _ in range(PASSES):
        worst = np.float32(0)
        for number in np.random.permutation(rows.size):
            row = rows[number]
            first, last = starts[row], starts[row + 1]
            scores[:] = weights[BUCKETS]
            for place in range(first, last):
                bucket, value = buckets[place], values[place]
                for label in range(labels):
                    scores[label] += value * weights[bucket, label]
            moved = False
            for label in range(labels):
                steps[label] = 0
                target = np.float32(targets[row, label])
                if target == 0:
                    continue
                slack = np.float32(0.5) / (costs[1 if target > 0 else 0, label] * trust[row])
                alpha = alphas[number, label]
                gradient = target * scores[label] - 1 + slack * alpha
                if alpha == 0 and gradient >= 0:
                    continue
                worst = max(worst, abs(gradient))
                # a text has length 1, and the bias adds 1
                new = max(alpha - gradient / (2 + slack), np.float32(0))
                if new != alpha:
                    alphas[number, label] = new
                    steps[label] = (new - alpha) * target
                    moved = True
            if moved:
                weights[BUCKETS] += steps
                for place in range(first, last):
                    bucket, value = buckets[place], values[place]
                    for label in range(labels):
                        weights[bucket, label] += value * steps[label]
        if worst < TOLERANCE:
            break
    return weights


@dataclass(frozen=True)
class Classifiers:
    """Weights (BUCKETS + 1, labels), in a byte each: `steps` are multiples of `sizes` (labels).

    What labelling waits for is memory, and this is a quarter of it.
    """

    steps: NDArray[np.int8]
    sizes: NDArray[np.float32]

    @classmethod
    def of(cls, weights: NDArray[np.float32]) -> "Classifiers":
        """Weights rounded to 1/127 of the largest of their label."""
        sizes = np.maximum(np.abs(weights).max(axis=0), np.float32(1e-12)) / np.float32(127)
        return cls(np.rint(weights / sizes).astype(np.int8), sizes)

    def scores(self, counts: Counts, rarities: NDArray[np.float32]) -> NDArray[np.float32]:
        """What each classifier says of each text (texts, labels): above 0 speaks for the label."""
        return _scores(counts.starts, counts.buckets, counts.counts, rarities, self.steps) * self.sizes


@njit(cache=True, nogil=True, fastmath=True)
def _scores(
    starts: NDArray[np.int64],
    buckets: NDArray[np.int32],
    counts: NDArray[np.float32],
    rarities: NDArray[np.float32],
    steps: NDArray[np.int8],
) -> NDArray[np.float32]:
    labels = steps.shape[1]
    found = np.zeros((starts.size - 1, labels), dtype=np.float32)
    for text in range(starts.size - 1):
        length = np.float32(0)
        for place in range(starts[text], starts[text + 1]):
            bucket = buckets[place]
            value = (1 + np.log(counts[place])) * rarities[bucket]
            length += value * value
            for label in range(labels):
                found[text, label] += value * np.float32(steps[bucket, label])
        scale = 1 / np.sqrt(length) if length > 0 else np.float32(0)
        for label in range(labels):
            found[text, label] = found[text, label] * scale + np.float32(steps[BUCKETS, label])
    return found
