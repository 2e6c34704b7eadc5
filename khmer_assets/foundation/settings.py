"""What all settings share: that they are strict, how they are read from YAML, and how a mistake in them is told.

What does not belong here: any one setting. It stands, with its default and its limits, in the module that obeys it.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import to_jsonable_python

Ratio = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=64)]


class RecipeError(ValueError):
    """A recipe or catalogue that cannot be used; the message says where, what was given and what is expected."""


class Settings(BaseModel):
    """Unknown keys are errors, so that a misspelled setting is never silently ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Settings)


def folder_of_file(about: ValidationInfo) -> Path:
    """The folder of the file that is being read, for a field that names another file."""
    return Path((about.context or {}).get("folder", "."))


def _beside_the_file(path: Path, about: ValidationInfo) -> Path:
    return folder_of_file(about).absolute() / path


FileBeside = Annotated[Path, AfterValidator(_beside_the_file)]
"""A path that is relative to the file in which it is written."""


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises `RecipeError` when there are none."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{file}: no such file; name an existing one") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{file}: cannot be read as YAML: {error}") from None
    if not isinstance(values, dict):
        raise RecipeError(f"{file}: expected keys and values, found {type(values).__name__}")
    return values


def validated(model: type[S], values: Any, file: Path, prefix: str = "") -> S:
    """`values`, which stand in `file` under the key `prefix`, as settings. Raises `RecipeError`, a line a mistake."""
    try:
        return model.model_validate(values, context={"folder": file.parent})
    except ValidationError as error:
        lines = [
            f"{file}: {prefix}{'.'.join(map(str, e['loc'] or ['recipe']))}: {e['msg']} (given: {e['input']!r:.80})"
            for e in error.errors()
        ]
        raise RecipeError("\n".join(lines)) from None


def code_version(number: int, **settings: Any) -> str:
    """An asset's code version: `number`, raised when its code changes meaning, and a digest of the settings it reads.

    >>> code_version(1, seed=1) == code_version(1, seed=1) != code_version(1, seed=2)
    True
    """
    return f"{number}-{digest_of(to_jsonable_python(settings))[:12]}"


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-compatible value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
