"""What all settings share: that they are strict, and how a mistake in them is told.

What does not belong here: any one setting. It stands, with its default and its limits, in the module that obeys it.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo
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


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected texts, numbers, lists, and keys with such values: {error}") from None
    return values


PlainValues = Annotated[dict[str, Any], AfterValidator(_plain)]
"""Keys and values that are not looked at yet; YAML can hold dates and bytes, which no settings are made of."""


class Located(str):
    """A text from a file that another file extends; `folder` is that of the file in which it stands."""

    folder: Path

    @classmethod
    def all_in(cls, values: Any, folder: Path) -> Any:
        """`values` with each text in it located in `folder`, but for those that are located already."""
        if isinstance(values, dict):
            return {key: cls.all_in(value, folder) for key, value in values.items()}
        if isinstance(values, list):
            return [cls.all_in(value, folder) for value in values]
        if isinstance(values, str) and not isinstance(values, cls):
            values = cls(values)
            values.folder = folder
        return values


def folder_of_file(value: Any, about: ValidationInfo) -> Path:
    """The folder of the file in which `value` stands, for a field that names another file."""
    return value.folder if isinstance(value, Located) else Path((about.context or {}).get("folder", "."))


def _beside_the_file(path: Any, about: ValidationInfo) -> Any:
    return folder_of_file(path, about).absolute() / path if isinstance(path, str | Path) else path


FileBeside = Annotated[Path, BeforeValidator(_beside_the_file)]
"""A path that is relative to the file in which it is written."""


SECRETS = re.compile(r"(^|_)(key|token)(_variable)?$|secret|password")  # names of what holds one, or is mistaken for it
EXPECTED = {  # where pydantic's own words would not help
    "model_type": "expected keys and values",
    "dict_type": "expected keys and values",
    "string_pattern_mismatch": "expected small letters, digits and _, beginning with a letter or digit",
    "extra_forbidden": "there is no such key",
    "missing": "is missing",
}


def mistakes(error: ValidationError, prefix: str, whole: str) -> list[str]:
    """A line a mistake: its key after `prefix` (`whole` where it has none), what is wrong, what was given."""
    lines = []
    for one in error.errors():
        key = (prefix + ".".join(map(str, one["loc"]))).strip(".") or whole
        told = EXPECTED.get(one["type"]) or one["msg"].removeprefix("Value error, ")
        lines.append(f"{key}: {told}")
        if one["loc"] or not isinstance(one["input"], dict):  # else it is about keys that contradict each other
            lines[-1] += f" (given: {_shown(one['input'], str(one['loc'][-1]) if one['loc'] else '')!r:.80})"
    return lines


def _shown(value: Any, key: str) -> Any:
    """What is shown of what was given: not what stands under the name of a secret, where somebody may have put one."""
    if isinstance(value, dict):
        return {name: _shown(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner, key) for inner in value]
    with_password = isinstance(value, str) and "://" in value and ("@" in value or "?" in value)
    return "..." if with_password or (value is not None and SECRETS.search(key.lower())) else value


def validated(model: type[S], values: Any, file: Path, prefix: str = "") -> S:
    """`values`, which stand in `file` under the key `prefix`, as settings. Raises `RecipeError`, a line a mistake."""
    try:
        return model.model_validate(values, context={"folder": file.parent})
    except ValidationError as error:
        lines = [f"{file}: {mistake}" for mistake in mistakes(error, prefix, "recipe")]
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
