"""Whether a model's confidence is the share of its answers that are right, and what makes it so.

Confidence in a choice is its share among the choices (softmax of their log-likelihoods over a temperature, Guo et al.
2017); in an answer, the mean likelihood of its tokens, scaled by Platt's logistic regression (1999). What is fitted is
judged on items that it was not fitted on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FOLDS = 10
BINS = 10  # of equal width, as of Guo et al.
FEWEST = 20  # records of a kind, of which anything is fitted
DRAWS = 1000
LARGEST_SLOPE = 100.0


@dataclass(frozen=True)
class Record:
    """`scores`: log-likelihoods of the choices or, of an answer, the mean log-likelihood of its tokens alone. `right`:
    the number of the right choice; of an answer, 0 when it is right and -1 when it is not."""

    scores: list[float]
    right: int


def calibrate(choices: Sequence[Record], answers: Sequence[Record]) -> dict[str, Any]:
    """Figures by kind, `choices` and `answers`, and of both together; parameters fitted on all records of a kind.

    `before` and the scalings have the expected calibration error, its interval, and the bins of a reliability diagram;
    `best` is the scaling with the lower error, whose parameters a router uses. A kind with fewer than `FEWEST` records
    is left out.
    """
    import numpy as np

    found: dict[str, Any] = {}
    pooled: list[NDArray[np.float64]] = []
    for kind, records in (("choices", choices), ("answers", answers)):
        if len(records) < FEWEST:
            continue
        right = np.array([_pick(record) == record.right for record in records], dtype=np.float64)
        before = _confidences(records, 1.0)
        scaled = {
            "temperature": _crossed(records, right, _temperature, _confidences),
            "platt": _crossed(records, right, _platt, _platt_confidences),
        }
        told = {name: reliability(values, right) for name, values in scaled.items()}
        best = min(told, key=lambda name: told[name]["error"])
        temperature, (slope, offset) = _temperature(records, right), _platt(records, right)
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


def reliability(confidences: "NDArray[np.float64]", right: "NDArray[np.float64]") -> dict[str, Any]:
    """Expected calibration error, the interval of it (items drawn with replacement), and by bin: items, confidence,
    accuracy."""
    import numpy as np

    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    member = np.eye(BINS)[places]

    def errors(weights: "NDArray[np.float64]") -> "NDArray[np.float64]":
        gaps: NDArray[np.float64] = np.abs(weights @ (member * (confidences - right)[:, None])).sum(-1)
        return gaps / weights.sum(-1)

    count = len(right)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
    low, high = np.quantile(errors(drawn), [0.025, 0.975])
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
    return {"error": float(errors(np.ones(count))), "low": float(low), "high": float(high), "bins": bins}


def _pick(record: Record) -> int:
    return max(range(len(record.scores)), key=record.scores.__getitem__)


def _confidences(records: Sequence[Record], temperature: float) -> "NDArray[np.float64]":
    """In the pick of each record; an answer's is the mean likelihood of its tokens, of which the logit is scaled."""
    import numpy as np

    found = []
    for record in records:
        if len(record.scores) == 1:
            found.append(1 / (1 + np.exp(-_logit(record) / temperature)))
        else:
            scores = np.array(record.scores) / temperature
            found.append(1 / np.exp(scores - scores.max()).sum())
    return np.array(found)


def _logit(record: Record) -> float:
    """Of the confidence before any scaling."""
    import numpy as np

    if len(record.scores) == 1:
        confidence = float(np.exp(min(record.scores[0], 0.0)))
    else:
        confidence = float(_confidences([record], 1.0)[0])
    confidence = min(max(confidence, 1e-6), 1 - 1e-6)
    return float(np.log(confidence / (1 - confidence)))


def _loss(confidences: "NDArray[np.float64]", right: "NDArray[np.float64]") -> float:
    """Mean negative log-likelihood of what came out right and wrong."""
    import numpy as np

    safe = confidences.clip(1e-9, 1 - 1e-9)
    return float(-(right * np.log(safe) + (1 - right) * np.log(1 - safe)).mean())


def _temperature(records: Sequence[Record], right: "NDArray[np.float64]") -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda log: _loss(_confidences(records, float(2.0**log)), right), bounds=(-6, 8), method="bounded"
    )
    return float(2.0**found.x)


def _platt(records: Sequence[Record], right: "NDArray[np.float64]") -> tuple[float, float]:
    """Slope and offset of the logit, with Platt's targets, which keep a clean cut from infinite slopes."""
    import numpy as np
    from scipy.optimize import minimize

    logits = np.array([_logit(record) for record in records])
    hits = right.sum()
    targets = np.where(right > 0, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))

    def loss(parameters: "NDArray[np.float64]") -> float:
        return _loss(1 / (1 + np.exp(-(parameters[0] * logits + parameters[1]).clip(-50, 50))), targets)

    found = minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B", bounds=[(0, LARGEST_SLOPE), (-50, 50)])
    return float(found.x[0]), float(found.x[1])


def _platt_confidences(records: Sequence[Record], parameters: tuple[float, float]) -> "NDArray[np.float64]":
    import numpy as np

    logits = np.array([_logit(record) for record in records])
    return 1 / (1 + np.exp(-(parameters[0] * logits + parameters[1]).clip(-50, 50)))


def _crossed(records: Sequence[Record], right: "NDArray[np.float64]", fit: Any, apply: Any) -> "NDArray[np.float64]":
    """Confidences scaled by what was fitted on the other folds."""
    import numpy as np

    folds = np.random.default_rng(0).permutation(len(records)) % FOLDS
    found = np.empty(len(records))
    for fold in range(FOLDS):
        held, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        parameters = fit([records[place] for place in rest.tolist()], right[rest])
        found[held] = apply([records[place] for place in held.tolist()], parameters)
    return found
