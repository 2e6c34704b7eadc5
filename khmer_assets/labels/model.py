"""The label model: what teachers and persons said of thousands of documents, learned, so that it says it of millions.

Hashed character n-grams (`features.py`), a linear classifier a label (`linear.py`), calibrated (`calibration.py`). It
is kept as `weights.safetensors` and `label_model.json`, which hold numbers and names and no code.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from khmer_assets.foundation.workers import cores
from khmer_assets.labels.calibration import Calibration, Floats, Targets, calibrate, given_labels, probabilities, slices
from khmer_assets.labels.categories import Head

if TYPE_CHECKING:
    from khmer_assets.labels.linear import Classifiers

WEIGHTS = "weights.safetensors"
ABOUT = "label_model.json"
FOLDS = 4


class _Head(BaseModel):
    name: str
    kind: str
    labels: list[str]
    scale: float
    bias: list[float]
    threshold: list[float]
    least: int
    most: int


class _About(BaseModel):
    characters: int
    heads: list[_Head]


@dataclass(frozen=True)
class LabelModel:
    """`classifiers`, and the `rarities` of n-grams, see the first `characters` of a text."""

    heads: tuple[Head, ...]
    characters: int
    rarities: NDArray[np.float32]
    classifiers: "Classifiers"
    calibrations: dict[str, Calibration]

    def probabilities(self, texts: Sequence[str]) -> dict[str, Floats]:
        """By question, the probability of each of its labels (texts, labels)."""
        from khmer_assets.labels.features import ngram_counts

        return self.calibrated(self.classifiers.scores(ngram_counts(texts, self.characters), self.rarities))

    def calibrated(self, scores: NDArray) -> dict[str, Floats]:
        """The same from the classifiers' scores."""
        place = slices(self.heads)
        return {
            head.name: probabilities(head, scores[:, place[head.name]], self.calibrations[head.name])
            for head in self.heads
        }

    def verdicts(self, given: dict[str, Floats]) -> dict[str, list[list[str]]]:
        """By question, the labels given to each text, the likeliest first; a question with one answer has one."""
        found = {}
        for head in self.heads:
            chances = given[head.name]
            chosen = given_labels(head, chances, self.calibrations[head.name])
            order = np.argsort(-chances, axis=1, kind="stable")
            found[head.name] = [
                [head.labels[label] for label in ranked if row[label]]
                for row, ranked in zip(chosen, order, strict=True)
            ]
        return found

    def save(self, folder: Path) -> None:
        """Write the two files."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray] = {
            "steps": self.classifiers.steps,
            "sizes": self.classifiers.sizes,
            "rarities": self.rarities,
        }
        save_file(tensors, folder / WEIGHTS)
        about = _About(
            characters=self.characters,
            heads=[
                _Head(
                    name=head.name,
                    kind=head.kind,
                    labels=list(head.labels),
                    scale=self.calibrations[head.name].scale,
                    bias=self.calibrations[head.name].bias.tolist(),
                    threshold=self.calibrations[head.name].threshold.tolist(),
                    least=self.calibrations[head.name].least,
                    most=self.calibrations[head.name].most,
                )
                for head in self.heads
            ],
        )
        (folder / ABOUT).write_text(json.dumps(about.model_dump(), ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, folder: Path) -> "LabelModel":
        """The model in a folder."""
        from safetensors.numpy import load_file

        from khmer_assets.labels.linear import Classifiers

        tensors = load_file(folder / WEIGHTS)
        about = _About.model_validate_json((folder / ABOUT).read_text())
        heads = tuple(Head(one.name, "one" if one.kind == "one" else "any", tuple(one.labels)) for one in about.heads)
        return cls(
            heads,
            about.characters,
            tensors["rarities"],
            Classifiers(tensors["steps"], tensors["sizes"]),
            {
                one.name: Calibration(one.scale, np.array(one.bias), np.array(one.threshold), one.least, one.most)
                for one in about.heads
            },
        )


@dataclass(frozen=True)
class Learned:
    """A model of all texts, and `scores` of classifiers that have not learned from the text that they score."""

    model: LabelModel
    scores: NDArray[np.float32]


def learn(
    texts: Sequence[str],
    heads: Sequence[Head],
    targets: Targets,
    trust: NDArray[np.float32],
    held_out: NDArray[np.bool_],
    characters: int,
    seed: int,
) -> Learned:
    """A label model of texts whose labels are known.

    `targets` (texts, labels of all questions in turn): 1 where a text has the label, -1 where it has not, 0 where
    nobody knows. `trust` (texts): how much an error counts. `held_out` (texts): those to measure with. What is not held
    out is parted in folds; the calibration is fitted to what each fold's texts get from classifiers of the others. The
    held-out texts get theirs from classifiers of all folds. The model itself learns from all texts in the end.
    """
    from khmer_assets.labels import linear
    from khmer_assets.labels.features import ngram_counts

    counts = ngram_counts(texts, characters)
    train = np.flatnonzero(~held_out)
    everything = np.arange(len(texts))
    fold = np.random.default_rng(seed).permutation(len(train)) % FOLDS
    known = linear.rarity(counts, train)
    features = linear.weighed(counts, known)
    scores = np.zeros((len(texts), targets.shape[1]), dtype=np.float32)

    def score(learned: NDArray[np.int64], scored: NDArray[np.int64]) -> None:
        found = linear.Classifiers.of(linear.fit(features, learned, targets, trust, seed))
        scores[scored] = found.scores(counts, known)[scored]

    parts = [(train[fold != number], train[fold == number]) for number in range(FOLDS)]
    with ThreadPoolExecutor(cores()) as threads:
        list(threads.map(lambda part: score(*part), [*parts, (train, np.flatnonzero(held_out))]))
    place = slices(heads)
    calibrations = {
        head.name: calibrate(head, scores[train][:, place[head.name]], targets[train][:, place[head.name]])
        for head in heads
    }
    rarities = linear.rarity(counts, everything)
    found = linear.Classifiers.of(linear.fit(linear.weighed(counts, rarities), everything, targets, trust, seed))
    return Learned(LabelModel(tuple(heads), characters, rarities, found, calibrations), scores)
