"""A measure of a model on a task: its value, its interval, and whether two models differ in it.

Every measure is a formula of sums over items, so that an interval comes of drawing items with replacement (Efron 1979),
and a paired test of drawing the same items for both models (Koehn 2004, "Statistical Significance Tests for Machine
Translation Evaluation").
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAWS = 1000
CONFIDENCE = 0.95
DIGITS = 5  # of the sums that are kept: two machines do not add alike to the last digit
CHRF_BETA, CHRF_ORDERS, BLEU_ORDERS = 2, 8, 4  # chrF++ (Popovic 2017): characters to 6, words to 2

Kind = Literal["ratio", "chrf", "bleu"]


@dataclass(frozen=True)
class Measure:
    """`sums`: by an item's id, what is added up over items. Of a `ratio`, numerator and denominator (1 for a mean); of
    `chrf`, sacrebleu's n-grams of hypothesis, reference and match by order; of `bleu`, both lengths, then matches and
    n-grams by order. `scale`: 100 for a percentage."""

    task: str
    metric: str
    kind: Kind
    sums: dict[str, list[float]] = field(repr=False)
    higher_is_better: bool = True
    scale: float = 1
    note: str = ""

    @property
    def name(self) -> str:
        """Task and metric."""
        return f"{self.task}: {self.metric}"

    def kept(self) -> dict[str, Any]:
        """As JSON, to be read again by `read`."""
        sums = {identity: [round(value, DIGITS) for value in values] for identity, values in self.sums.items()}
        return {**asdict(self), "sums": sums}

    def told(self) -> dict[str, Any]:
        """The figures for people: value, `low` and `high` of its interval, and the number of items."""
        value, low, high = interval(self)
        return {
            "task": self.task,
            "metric": self.metric,
            "value": value,
            "low": low,
            "high": high,
            "items": len(self.sums),
            "higher_is_better": self.higher_is_better,
            "note": self.note,
        }


def read(kept: Mapping[str, Any]) -> Measure:
    """What `Measure.kept` gave."""
    return Measure(**kept)


def mean_of(task: str, metric: str, scores: Mapping[str, float], **options: Any) -> Measure:
    """The mean of a score of each item."""
    return Measure(task, metric, "ratio", {identity: [score, 1.0] for identity, score in scores.items()}, **options)


def interval(measure: Measure) -> tuple[float, float, float]:
    """The value and the bounds between which `CONFIDENCE` of the draws lie. Raises ValueError without an item."""
    import numpy as np

    sums = np.array(list(measure.sums.values()), dtype=np.float64)
    if not sums.size:
        raise ValueError(f"{measure.name} has no item to measure")
    drawn = _values(measure, _draws(len(sums)) @ sums)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(_values(measure, sums.sum(0)[None])[0]), float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """`change`: that of the second model against the first, and the interval of it; on `items` that both were asked."""

    name: str
    change: float
    low: float
    high: float
    items: int
    higher_is_better: bool

    @property
    def verdict(self) -> Literal["better", "worse", "alike"]:
        """Two models differ when the interval of their difference does not hold 0. What is no number is worse."""
        if self.change != self.change:
            return "worse"
        if self.low <= 0 <= self.high:
            return "alike"
        return "better" if (self.change > 0) == self.higher_is_better else "worse"


def difference(first: Measure, second: Measure) -> Difference | None:
    """The paired test on the items that both models were asked; None where there is none."""
    import numpy as np

    shared = [identity for identity in first.sums if identity in second.sums]
    if not shared:
        return None
    draws = _draws(len(shared))
    values = []
    for measure in (first, second):
        sums = np.array([measure.sums[identity] for identity in shared], dtype=np.float64)
        values.append((_values(measure, sums.sum(0)[None])[0], _values(measure, draws @ sums)))
    (one, ones), (other, others) = values
    low, high = np.quantile(others - ones, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    change = float(other - one)
    return Difference(second.name, change, float(low), float(high), len(shared), second.higher_is_better)


def differences(first: Sequence[Measure], second: Sequence[Measure]) -> list[Difference]:
    """The paired tests of all measures that both models have."""
    former = {measure.name: measure for measure in first}
    found = [difference(former[measure.name], measure) for measure in second if measure.name in former]
    return [one for one in found if one is not None]


def _draws(items: int) -> "NDArray[np.float64]":
    """How often each item is drawn, of shape (DRAWS, items); the same for the same number of items."""
    import numpy as np

    return np.random.default_rng(0).multinomial(items, np.full(items, 1 / items), size=DRAWS).astype(np.float64)


def _values(measure: Measure, totals: "NDArray[np.float64]") -> "NDArray[np.float64]":
    formula = {"ratio": _ratio, "chrf": _chrf, "bleu": _bleu}[measure.kind]
    return measure.scale * formula(totals)


def _ratio(totals: "NDArray[np.float64]") -> "NDArray[np.float64]":
    return totals[:, 0] / totals[:, 1]


def _chrf(totals: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """As sacrebleu's without smoothing: precision and recall are means over the orders that both texts have."""
    import numpy as np

    given, wanted, matched = (totals.reshape(-1, CHRF_ORDERS, 3)[:, :, place] for place in range(3))
    there = (given > 0) & (wanted > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(there, matched / given, 0).sum(1) / np.maximum(1, there.sum(1))
        recall = np.where(there, matched / wanted, 0).sum(1) / np.maximum(1, there.sum(1))
        score = (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)
    return np.where(precision + recall > 0, 100 * score, 0.0)


def _bleu(totals: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """As sacrebleu's with its default smoothing (method 3 of Chen and Cherry 2014): an order without a match counts as
    half a match, a quarter for the next such order, and so on."""
    import numpy as np

    lengths, matched, there = totals[:, :2], totals[:, 2 : 2 + BLEU_ORDERS], totals[:, 2 + BLEU_ORDERS :]
    halvings = np.cumsum((matched == 0) & (there > 0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        matched = np.where(matched == 0, 0.5**halvings, matched)
        # an order for which the answers are too short is left out by sacrebleu where nothing is there, and so is here 0
        logs = np.where(there > 0, np.log(100 * matched / there), -np.inf)
        brevity = np.where(lengths[:, 0] < lengths[:, 1], np.exp(1 - lengths[:, 1] / lengths[:, 0]), 1.0)
        score = brevity * np.exp(logs.mean(1))
    return np.where((totals[:, 2 : 2 + BLEU_ORDERS].any(axis=1)) & (lengths[:, 0] > 0), score, 0.0)
