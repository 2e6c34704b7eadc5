"""What the router learns from: held-out chats, what the model and each adapter answered, and how sure the model was.

What belongs here: the fitting, and the figures on chats that were not fitted on. What does not: the asking
(`train.py`). Chats are in ten parts: in each of ten rounds one is tested, one chooses how strongly is fitted, and eight
are learned from (80/10/10); so each chat is tested once. The router itself learns from all in the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from khmer_assets.evaluation import calibration
from khmer_assets.router import dissatisfaction
from khmer_assets.router.classifier import Classifier, fit
from khmer_assets.server.confidence import Scaling, score
from khmer_assets.server.router_file import About, Router

PARTS = 10
FEWEST = 40  # chats, of which anything is learned
STRENGTHS = (3.0, 30.0)


@dataclass(frozen=True)
class Asked:
    """A held-out chat: whose it is (`own`: an adapter, or None for the model's), its last `question`, whether the
    model's answer was `right` and each adapter's, the log-probabilities of the tokens of the model's own, and the
    `instructions` of the system that stand before."""

    question: str
    own: str | None
    right: bool
    by_adapter: dict[str, bool]
    logprobs: list[float]
    instructions: str = ""

    @property
    def texts(self) -> tuple[str, str]:
        """What the domain is told from."""
        return self.instructions, self.question

    def is_right(self, answerer: str | None) -> bool:
        """Whether this one's answer was; None: the model's."""
        return self.right if answerer is None else self.by_adapter[answerer]

    def best(self) -> str | None:
        """Who should answer: the model where it is right, else an adapter that is, else the one whose chat it is."""
        if self.right:
            return None
        right = [name for name, one in self.by_adapter.items() if one]
        return self.own if self.own in right or not right else right[0]

    def is_well_routed(self, answerer: str | None) -> bool:
        """Whether nobody would have been the better choice."""
        anyone = self.right or any(self.by_adapter.values())
        return self.is_right(answerer) if anyone else answerer == self.own


class TooFew(Exception):
    """Not enough held-out chats to learn from; the message says what to do."""


def scaling_of(asked: Sequence[Asked]) -> tuple[Scaling, float]:
    """The scaling of the model's own answers, temperature or Platt's, whichever does better on what it was not fitted
    on, and its expected calibration error there. Raises `TooFew`."""
    scored = [(found, one.right) for one in asked if (found := score(one.logprobs)) is not None]
    records = [calibration.Record([found], 0 if right else -1) for found, right in scored]
    told = calibration.calibrate([], records).get("answers")
    if told is None:
        raise TooFew(f"{len(records)} answers are too few to calibrate with, expected at least {calibration.FEWEST}")
    fitted = told["parameters"]
    slope, offset = fitted["platt_slope"], fitted["platt_offset"]
    if told["best"] == "temperature":
        slope, offset = 1 / fitted["temperature"], 0.0
    return Scaling(slope=slope, offset=offset), told[told["best"]]["error"]


def learn(asked: Sequence[Asked], domains: Sequence[str], base: str, threshold: float, seed: int) -> Router:
    """The router of all chats, with the figures of ten that have not seen the chats that they are judged by.

    `domains` are the adapters' names, `base` the digest of the model. Raises `TooFew`.
    """
    if len(asked) < FEWEST:
        told = f"{len(asked)} held-out chats are too few to learn a router from, expected at least {FEWEST}"
        raise TooFew(f"{told}; bring more chats")
    figures = judged(asked, domains, threshold, seed)
    scaling, error = scaling_of(asked)
    detector = dissatisfaction.learn([one.question for one in asked])
    figures |= {"ece": error, "chats": float(len(asked))}
    figures |= dissatisfaction.figures(detector, dissatisfaction.examples(held_out=True))
    everything = _fit(asked, domains, scaling, figures["strength"])
    return as_file(everything, detector, domains, base, threshold, scaling, figures)


def as_file(
    domain: Classifier,
    detector: Classifier,
    domains: Sequence[str],
    base: str,
    threshold: float,
    scaling: Scaling,
    figures: dict[str, float],
) -> Router:
    """What was learned, as the gateway reads it."""
    about = About(
        base=base,
        domains=tuple(domains),
        biases=tuple(map(float, domain.biases)),
        of_confidence=tuple(map(float, domain.of_figures[0])),
        dissatisfaction=float(detector.biases[1] - detector.biases[0]),
        threshold=threshold,
        scaling=scaling,
        figures=figures,
    )
    unhappy = detector.weights[:, 1:] - detector.weights[:, :1]
    return Router(about, np.hstack([domain.weights, unhappy]).astype(np.float32))


def judged(asked: Sequence[Asked], domains: Sequence[str], threshold: float, seed: int) -> dict[str, float]:
    """The share of right answers of the model alone (`never`), of the likeliest adapter every time (`always`), of the
    router for streams (`streamed`) and for whole answers (`whole`), and of who picks the best each time (`oracle`); the
    share of chats that are well routed both ways; and how strongly is fitted best."""
    order = np.random.default_rng(seed).permutation(len(asked))
    part = np.empty(len(asked), dtype=np.int64)
    part[order] = np.arange(len(asked)) % PARTS
    picks: dict[str, list[tuple[Asked, str | None]]] = {"always": [], "streamed": [], "whole": []}
    votes = dict.fromkeys(STRENGTHS, 0)
    for test in range(PARTS):
        held = {test, (test + 1) % PARTS}
        learned = [one for one, own in zip(asked, part, strict=True) if own not in held]
        chosen = [one for one, own in zip(asked, part, strict=True) if own == (test + 1) % PARTS]
        scaling, _ = scaling_of([*learned, *chosen])
        tried = {strength: _fit(learned, domains, scaling, strength) for strength in STRENGTHS}
        strength = min(tried, key=lambda one: _loss(tried[one], chosen, domains, scaling))
        votes[strength] += 1
        router = as_file(tried[strength], _silent(), domains, "", threshold, scaling, {})
        for one in (one for one, own in zip(asked, part, strict=True) if own == test):
            confidence = scaling.confidence(one.logprobs)
            sure = confidence is not None and confidence >= threshold
            picks["always"].append((one, router.guess(*one.texts)))
            picks["streamed"].append((one, router.domain(*one.texts)))
            picks["whole"].append((one, None if sure else router.domain(*one.texts, confidence)))
    right = {name: float(np.mean([one.is_right(pick) for one, pick in chosen])) for name, chosen in picks.items()}
    routed = {
        f"routing_accuracy_{name}": float(np.mean([one.is_well_routed(pick) for one, pick in picks[name]]))
        for name in ("streamed", "whole")
    }
    return {
        "never": float(np.mean([one.right for one in asked])),
        "oracle": float(np.mean([one.right or any(one.by_adapter.values()) for one in asked])),
        **right,
        "router": min(right["streamed"], right["whole"]),
        **routed,
        "strength": max(votes, key=lambda one: votes[one]),
    }


def _features(asked: Sequence[Asked], scaling: Scaling) -> NDArray[np.float64]:
    found = [scaling.confidence(one.logprobs) for one in asked]
    return np.array([[0.0 if one is None else one - 0.5] for one in found])


def _fit(asked: Sequence[Asked], domains: Sequence[str], scaling: Scaling, strength: float) -> Classifier:
    """Each chat twice: with the confidence, and as a question that nobody has answered yet."""
    targets = np.array(_targets(asked, domains) * 2)
    figures = np.concatenate([_features(asked, scaling), np.zeros((len(asked), 1))])
    return fit([one.texts for one in asked] * 2, figures, targets, len(domains) + 1, strength)


def _loss(classifier: Classifier, asked: Sequence[Asked], domains: Sequence[str], scaling: Scaling) -> float:
    chances = classifier.chances([one.texts for one in asked], _features(asked, scaling))
    return float(-np.log(np.maximum(chances[np.arange(len(asked)), _targets(asked, domains)], 1e-12)).mean())


def _targets(asked: Sequence[Asked], domains: Sequence[str]) -> list[int]:
    names: list[Any] = [None, *domains]
    return [names.index(one.best()) for one in asked]


def _silent() -> Classifier:
    """A detector that finds nothing."""
    from khmer_assets.server.text_features import BUCKETS

    return Classifier(np.zeros((BUCKETS, 2)), np.zeros((0, 2)), np.array([50.0, 0.0]))
