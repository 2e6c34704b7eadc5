"""The detector of turns that say that the answer before was not good: its examples, and how well it does."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from khmer_assets.foundation.settings import digest_of
from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.router.classifier import Classifier, fit
from khmer_assets.server.routing import DISSATISFIED

EXAMPLES = Path(__file__).parent / "dissatisfaction.yaml"
STRENGTH = 100.0

Example = tuple[str, bool]


@cache
def examples(held_out: bool) -> list[Example]:
    """What people say, and whether it is of an answer that was not good."""
    found = read_yaml(EXAMPLES)
    part = found["held_out"] if held_out else found
    return [(text, True) for text in part["dissatisfied"]] + [(text, False) for text in part["others"]]


def learn(questions: Sequence[str]) -> Classifier:
    """A classifier of two classes, the second being dissatisfaction; `questions` are of people who are not."""
    known = {text for text, _ in examples(held_out=True)}
    asked = sorted(set(questions) - known, key=digest_of)[: 2 * len(examples(held_out=False))]  # more make it deaf
    pairs = examples(held_out=False) + [(question, False) for question in asked]
    texts = [(text,) for text, _ in pairs]
    targets = np.array([int(unhappy) for _, unhappy in pairs])
    return fit(texts, np.empty((len(texts), 0)), targets, 2, STRENGTH)


def figures(detector: Classifier, examples: Sequence[Example]) -> dict[str, float]:
    """The share of examples that it tells right, of unhappy ones that it finds, of others that it takes for such."""
    found = detector.chances([(text,) for text, _ in examples], np.empty((len(examples), 0)))[:, 1] >= DISSATISFIED
    unhappy = np.array([unhappy for _, unhappy in examples])
    return {
        "detector_accuracy": float((found == unhappy).mean()),
        "detector_recall": float(found[unhappy].mean()),
        "detector_false_alarms": float(found[~unhappy].mean()),
    }
