"""What can be said of a document: the questions, their categories and the columns that hold the answers.

How the categories are called stands in `categories.yaml`, or in the file that the recipe names. `quality`, 1 to 10, is
the sum of its four parts; a document is safe when it has no category of toxicity.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BeforeValidator, Field, ValidationInfo

from khmer_assets.foundation.settings import Name, RecipeError, Settings, folder_of_file
from khmer_assets.foundation.yaml_files import read_yaml

CATEGORIES = Path(__file__).parent / "categories.yaml"
PARTS = {"accuracy": 3, "completeness": 2, "coherence": 2, "helpfulness": 3}  # the most points of each
MAX_TOPICS = 3
GOOD = 7  # the least quality of a good document

ONE_OF = ("validity", "claim")
ANY_OF = ("toxicity", "topics")
TEXT = Annotated[str, Field(min_length=1, max_length=200)]


class Names(Settings):
    """What a category is called."""

    en: TEXT
    km: TEXT


CategoryNames = Annotated[dict[Name, Names], Field(min_length=1, max_length=100)]


class Categories(Settings):
    """The categories of each question by their keys."""

    validity: CategoryNames
    claim: CategoryNames
    toxicity: CategoryNames
    topics: CategoryNames


def _read(value: Any, about: ValidationInfo) -> Any:
    """The content of the file that the recipe names, so that a changed file is a changed recipe."""
    if value is not None and not isinstance(value, str):
        return value
    try:
        return read_yaml(CATEGORIES if value is None else folder_of_file(value, about) / value)
    except RecipeError as error:
        raise ValueError(str(error)) from None


CategoriesFile = Annotated[Categories, BeforeValidator(_read)]

# Null where nobody has said it. `teacher`: the teacher's name, or PERSON.
LABELS = pl.Schema(
    {
        **dict.fromkeys(ONE_OF, pl.String()),
        **dict.fromkeys(ANY_OF, pl.List(pl.String())),
        **dict.fromkeys(PARTS, pl.Int8()),
    }
)
PERSON = "person"
LABELLED = pl.Schema(
    {
        "id": pl.String(),
        "source": pl.String(),
        "language": pl.String(),
        "text": pl.String(),
        "content_hash": pl.String(),
        "teacher": pl.String(),
        **LABELS,
        "quality": pl.Int8(),
    }
)


def quality() -> pl.Expr:
    """The quality of labelled rows: the sum of its parts, 1 at least; null where a part is."""
    return pl.sum_horizontal(*PARTS, ignore_nulls=False).clip(1).cast(pl.Int8)


@dataclass(frozen=True)
class Head:
    """A question as the label model sees it: `one` of its labels is true, or `any` number of them."""

    name: str
    kind: Literal["one", "any"]
    labels: tuple[str, ...]


def heads(categories: Categories) -> list[Head]:
    """All questions, in the order of the model's columns."""
    keys = {name: tuple(getattr(categories, name)) for name in (*ONE_OF, *ANY_OF)}
    return [
        *(Head(name, "one", keys[name]) for name in ONE_OF),
        *(Head(name, "any", keys[name]) for name in ANY_OF),
        Head("unsafe", "any", ("unsafe",)),
        *(Head(part, "one", tuple(map(str, range(most + 1)))) for part, most in PARTS.items()),
        Head("good_quality", "any", ("good_quality",)),
    ]


def answer_schema(categories: Categories) -> dict[str, Any]:
    """The JSON schema of what is said of one document."""
    keys = {name: list(getattr(categories, name)) for name in (*ONE_OF, *ANY_OF)}
    properties: dict[str, Any] = {name: {"enum": keys[name]} for name in ONE_OF}
    properties |= {
        name: {"type": "array", "items": {"enum": keys[name]}, "minItems": least, "maxItems": most}
        for name, least, most in (("toxicity", 0, len(keys["toxicity"])), ("topics", 1, MAX_TOPICS))
    }
    properties |= {part: {"type": "integer", "minimum": 0, "maximum": most} for part, most in PARTS.items()}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
