"""Every document with what the label model says of it, and what the recipe keeps of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from khmer_assets.foundation.settings import PositiveFloat, Settings
from khmer_assets.labels.categories import ANY_OF, ONE_OF, PARTS
from khmer_assets.labels.model import LabelModel
from khmer_assets.sources.documents import DOCUMENT, SET_ASIDE

# A probability stands for each label given: of a list in its order. `quality` is the mean that the model expects, 1 to
# 10; `good_quality` is its own verdict on 7 or more. `weight`: how much the mixture shall use of the document.
PREDICTED = pl.Schema(
    {
        **{name: pl.String() for name in ONE_OF},
        **{f"{name}_probability": pl.Float32() for name in ONE_OF},
        **{name: pl.List(pl.String()) for name in ANY_OF},
        **{f"{name}_probability": pl.List(pl.Float32()) for name in ANY_OF},
        "safe": pl.Boolean(),
        "unsafe_probability": pl.Float32(),
        **{part: pl.Float32() for part in PARTS},
        "quality": pl.Float32(),
        "good_quality": pl.Boolean(),
        "good_quality_probability": pl.Float32(),
        "weight": pl.Float64(),
    }
)


class Keep(Settings):
    """What the mixture is made of, by the label model's verdict: documents of `good_quality` alone (7 or more), `safe`
    ones alone, `valid` ones alone. All else is set aside."""

    good_quality: bool = False
    safe: bool = False
    valid: bool = False


class Weights(Settings):
    """How often the mixture uses a document, as a factor: by its `topics` (the largest of their factors; 1 for those
    that are not named), times `good_quality` for documents of quality 7 or more. Below 1, so many are left out."""

    topics: Mapping[str, PositiveFloat] = {}
    good_quality: PositiveFloat = 1


def label_batch(batch: pl.DataFrame, model: LabelModel, keep: Keep, weights: Weights) -> pl.DataFrame:
    """`batch` (columns of `DOCUMENT`) with the columns of `PREDICTED`, and rule, measure and reason of what is not
    kept."""
    given = model.probabilities(batch["text"].fill_null("").to_list())
    verdicts = model.verdicts(given)
    columns: dict[str, Any] = dict.fromkeys(PREDICTED)
    for head in model.heads:
        chances, said = given[head.name], verdicts[head.name]
        if head.name in ONE_OF:
            columns[head.name] = [labels[0] for labels in said]
            columns[f"{head.name}_probability"] = chances.max(axis=1)
        elif head.name in ANY_OF:
            places = {label: number for number, label in enumerate(head.labels)}
            columns[head.name] = said
            columns[f"{head.name}_probability"] = [
                [row[places[label]] for label in labels] for labels, row in zip(said, chances, strict=True)
            ]
        elif head.name in PARTS:
            columns[head.name] = chances @ np.arange(len(head.labels))
        else:
            columns[f"{head.name}_probability"] = chances[:, 0]
    if "unsafe" in verdicts:
        columns["safe"] = [not said for said in verdicts["unsafe"]]
    if "good_quality" in verdicts:
        columns["good_quality"] = [bool(said) for said in verdicts["good_quality"]]
    if verdicts.keys() >= PARTS.keys():
        columns["quality"] = np.maximum(sum(columns[part] for part in PARTS), 1)
    nothing: list[list[str]] = [[]] * batch.height
    columns["weight"] = [
        max((weights.topics.get(topic, 1.0) for topic in topics), default=1.0) * (weights.good_quality if good else 1)
        for topics, good in zip(verdicts.get("topics", nothing), verdicts.get("good_quality", nothing), strict=True)
    ]
    said_of_all = pl.DataFrame(
        [
            pl.Series(name, [None] * batch.height if columns[name] is None else columns[name], dtype=kind, strict=False)
            for name, kind in PREDICTED.items()
        ]
    )
    documents = pl.concat([batch.select(*DOCUMENT), said_of_all], how="horizontal")
    return documents.with_columns(_verdict(model, keep)).unnest("_verdict")


def missing_questions(model: LabelModel, keep: Keep, weights: Weights) -> list[str]:
    """What the recipe asks for that the model has not learned."""
    wanted = {
        "validity": keep.valid,
        "unsafe": keep.safe,
        "good_quality": keep.good_quality or weights.good_quality != 1,
        "topics": bool(weights.topics),
    }
    known = {head.name for head in model.heads}
    return [name for name, asked in wanted.items() if asked and name not in known]


def _verdict(model: LabelModel, keep: Keep) -> pl.Expr:
    limits = {name: f"{one.threshold[0]:.3g}" for name, one in model.calibrations.items()}
    rules = [
        (
            keep.valid,
            "invalid",
            pl.col("validity") == "invalid",
            "validity_probability",
            pl.format("looks invalid, at {}", pl.col("validity_probability").round(3)),
        ),
        (
            keep.safe,
            "unsafe",
            ~pl.col("safe"),
            "unsafe_probability",
            pl.format(f"unsafe at {{}}, below {limits.get('unsafe')} is wanted", pl.col("unsafe_probability").round(3)),
        ),
        (
            keep.good_quality,
            "low_quality",
            ~pl.col("good_quality"),
            "good_quality_probability",
            pl.format(
                f"of quality 7 or more at {{}}, {limits.get('good_quality')} is wanted",
                pl.col("good_quality_probability").round(3),
            ),
        ),
    ]
    cases = [
        pl.when(broken).then(pl.struct(rule=pl.lit(rule), measure=pl.col(measure).cast(pl.Float64), reason=reason))
        for wanted, rule, broken, measure, reason in rules
        if wanted
    ]
    none = pl.struct(pl.lit(None, kind).alias(name) for name, kind in SET_ASIDE.items())
    return pl.coalesce(*cases, none).alias("_verdict")
