"""Whether a model's confidence is the share of its answers that are right, and what makes it so.

Confidence in a choice is its share among the choices (softmax of their log-likelihoods over a temperature, Guo et al.
2017); in an answer, the mean likelihood of its tokens, scaled by Platt's logistic regression (1999). What is fitted is
judged on items that it was not fitted on: each of `FOLDS` parts by what the others gave.

`Record`, `calibrate`, `confidence` and `reliability` are for other rooms too; who routes by confidence takes the
parameters from `calibration.json` of the release and scales with `confidence`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDS = 10
BINS = 10  # of equally many items: less biased than bins of equal width (Roelofs et al. 2022)
FEWEST = 20  # records of a kind, of which anything is fitted
DRAWS = 1000
LARGEST_SLOPE = 100.0
LEAST = 1e-6  # of a confidence whose logit is taken, and the most is as far from 1


@dataclass(frozen=True)
class Record:
    """`scores`: log-likelihoods of the choices or, of an answer, the mean log-likelihood of its tokens alone. `right`:
    the number of the right choice; of an answer, 0 when it is right and -1 when it is not."""

    scores: list[float]
    right: int


def calibrate(choices: Sequence[Record], answers: Sequence[Record]) -> dict[str, Any]:
    """Figures by kind, `choices` and `answers`, and of both together; parameters fitted on all records of a kind.

    `before` and the scalings are as `reliability` tells; `best` is the scaling with the lower loss on items that it
    was not fitted on. A kind with fewer than `FEWEST` records is left out.
    """
    import numpy as np

    found: dict[str, Any] = {}
    choices, answers = ([r for r in records if np.isfinite(r.scores).all()] for records in (choices, answers))
    pooled: list[NDArray[np.float64]] = []
    for kind, records in (("choices", choices), ("answers", answers)):
        if len(records) < FEWEST:
            continue
        scores = _scores(records)
        right = (scores.argmax(1) == [record.right for record in records]).astype(np.float64)
        before = _confidences(scores, 1.0)
        scaled = {
            "temperature": _crossed(scores, right, _temperature, _confidences),
            "platt": _crossed(scores, right, _platt, _platt_confidences),
        }
        told = {name: reliability(values, right) for name, values in scaled.items()}
        best = min(scaled, key=lambda name: _loss(scaled[name], right))
        temperature, (slope, offset) = _temperature(scores, right), _platt(scores, right)
        found[kind] = {
            "items": len(records),
            "accuracy": float(right.mean()),
            "before": reliability(before, right),
            **told,
            "best": best,
            "parameters": {"temperature": temperature, "platt_slope": slope, "platt_offset": offset},
        }
        pooled.append(np.stack([before, scaled[best], right]))
    if pooled:
        before, after, right = np.concatenate(pooled, axis=1)
        found["all"] = {
            "items": len(right),
            "before": reliability(before, right),
            "after": reliability(after, right),
        }
    return found


def confidence(figures: Mapping[str, Any], scores: Sequence[float]) -> float:
    """How likely the pick among choices, or an answer, is right: `scores` as of a `Record`, `figures` those of its
    kind in what `calibrate` gave. What is no number, or no score at all, gets 0. Plain Python, quick to load.

    >>> figures = {"best": "temperature", "parameters": {"temperature": 2.0}}
    >>> confidence(figures, [-1.0, -1.0])
    0.5
    """
    if not scores or not all(map(math.isfinite, scores)):
        return 0.0
    best, parameters = figures["best"], figures["parameters"]
    temperature = parameters["temperature"] if best == "temperature" else 1.0
    if len(scores) > 1:
        own = 1 / sum(math.exp(min(0.0, (score - max(scores)) / temperature)) for score in scores)
        if best == "temperature":
            return own
    else:
        own = math.exp(min(0.0, scores[0]))
    safe = min(max(own, LEAST), 1 - LEAST)
    logit = math.log(safe / (1 - safe))
    if best == "platt":
        logit = parameters["platt_slope"] * logit + parameters["platt_offset"]
    else:
        logit /= temperature
    return 1 / (1 + math.exp(-min(max(logit, -50.0), 50.0)))


def reliability(confidences: "NDArray[np.float64]", right: "NDArray[np.float64]") -> dict[str, Any]:
    """The expected calibration error with its interval, and by bin: items, confidence, accuracy.

    The mean gap over bins, `plain`, is never 0: chance alone opens gaps, and so do the draws of a bootstrap. So `error`
    is `plain` less the bias that the bootstrap shows (Efron and Tibshirani 1993, chapter 10), and `low` to `high` has
    the bootstrap's width around it; `low` is 0 where a perfectly calibrated model shows as large a gap in one of twenty
    draws (consistency resampling, Broecker and Smith 2007). `by_chance`: the mean `plain` of such a model. In
    simulations of 140 to 1,000 items the true error is above `high` in 0 to 15 of 100 cases.
    """
    import numpy as np

    generator, count = np.random.default_rng(0), len(right)
    gaps = confidences - right
    told = confidences.round(2)  # closer ones are one bin
    edges = np.unique(np.quantile(told, np.arange(1, BINS) / BINS, method="lower"))
    places = np.searchsorted(edges, told, side="left")
    member = np.eye(BINS)[places]

    def errors(weighted_gaps: "NDArray[np.float64]") -> "NDArray[np.float64]":
        return np.asarray(np.abs(weighted_gaps @ member).sum(-1) / count)

    plain = float(errors(gaps))
    cells = generator.integers(count, size=(DRAWS, count)) + count * np.arange(DRAWS)[:, None]
    drawn = errors(np.bincount(cells.ravel(), minlength=DRAWS * count).reshape(DRAWS, count) * gaps)
    calibrated = errors(confidences - (generator.random((DRAWS, count)) < confidences))
    error = max(0.0, 2 * plain - float(drawn.mean()))
    least, most = np.quantile(drawn, [0.025, 0.975]) - drawn.mean()
    by_chance = plain <= np.quantile(calibrated, 0.95)
    sizes = member.sum(0)
    bins = [
        {
            "items": int(sizes[place]),
            "confidence": float(confidences[places == place].mean()),
            "accuracy": float(right[places == place].mean()),
        }
        for place in range(BINS)
        if sizes[place]
    ]
    return {
        "error": error,
        "low": 0.0 if by_chance else max(0.0, error + float(least)),
        "high": error + float(most),
        "plain": plain,
        "by_chance": float(calibrated.mean()),
        "bins": bins,
    }


def _scores(records: Sequence[Record]) -> "NDArray[np.float64]":
    """The scores, a row a record; where one has fewer choices than others, the rest is impossible."""
    import numpy as np

    found = np.full((len(records), max(len(record.scores) for record in records)), -np.inf)
    for row, record in enumerate(records):
        found[row, : len(record.scores)] = record.scores
    return found


def _confidences(scores: "NDArray[np.float64]", temperature: float) -> "NDArray[np.float64]":
    """In the pick of each row; an answer's is the mean likelihood of its tokens, of which the logit is scaled."""
    import numpy as np

    if scores.shape[1] == 1:
        return _sigmoid(_logits(scores) / temperature)
    return np.asarray(1 / np.exp((scores - scores.max(1, keepdims=True)) / temperature).sum(1))


def _logits(scores: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Of the confidences before any scaling."""
    import numpy as np

    own = np.exp(scores[:, 0].clip(max=0)) if scores.shape[1] == 1 else _confidences(scores, 1.0)
    own = own.clip(LEAST, 1 - LEAST)
    return np.asarray(np.log(own / (1 - own)))


def _sigmoid(logits: "NDArray[np.float64]") -> "NDArray[np.float64]":
    import numpy as np

    return np.asarray(1 / (1 + np.exp(-logits.clip(-50, 50))))


def _loss(confidences: "NDArray[np.float64]", right: "NDArray[np.float64]") -> float:
    """Mean negative log-likelihood of what came out right and wrong."""
    import numpy as np

    safe = confidences.clip(1e-9, 1 - 1e-9)
    return float(-(right * np.log(safe) + (1 - right) * np.log(1 - safe)).mean())


def _temperature(scores: "NDArray[np.float64]", right: "NDArray[np.float64]") -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: _loss(_confidences(scores, float(2.0**log)), right), bounds=(-6, 8), method="bounded"
    )
    return float(2.0**found.x)


def _platt(scores: "NDArray[np.float64]", right: "NDArray[np.float64]") -> tuple[float, float]:
    """Slope and offset of the logit, with Platt's targets, which keep a clean cut from infinite slopes."""
    import numpy as np
    from scipy.optimize import minimize

    logits, hits = _logits(scores), right.sum()
    targets = np.where(right > 0, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    found = minimize(
        lambda parameters: _loss(_sigmoid(parameters[0] * logits + parameters[1]), targets),
        np.array([1.0, 0.0]),
        method="L-BFGS-B",
        bounds=[(0, LARGEST_SLOPE), (-50, 50)],
    )
    return float(found.x[0]), float(found.x[1])


def _platt_confidences(scores: "NDArray[np.float64]", parameters: tuple[float, float]) -> "NDArray[np.float64]":
    return _sigmoid(parameters[0] * _logits(scores) + parameters[1])


def _crossed(
    scores: "NDArray[np.float64]", right: "NDArray[np.float64]", fit: Any, apply: Any
) -> "NDArray[np.float64]":
    """Confidences scaled by what was fitted on the other folds."""
    import numpy as np

    folds = np.random.default_rng(0).permutation(len(scores)) % FOLDS
    found = np.empty(len(scores))
    for fold in range(FOLDS):
        held = folds == fold
        found[held] = apply(scores[held], fit(scores[~held], right[~held]))
    return found
