"""The catalogue: a YAML file with an entry a source, and the kinds of source that there are."""

import pkgutil
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from khmer_assets.foundation.settings import Name, PlainValues, RecipeError, Settings, validated
from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.khmer.script import Language

KINDS = tuple(sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "kinds")])))


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}")
    return kind


class Source(Settings):
    """One entry of the catalogue: a partition of every asset from `raw_corpus` to `deduplicated_corpus`.

    `kind` is the name of a module in `kinds/`, which says what the keys of `settings` mean.
    """

    name: Name
    kind: Annotated[str, AfterValidator(_known)]
    language: Language | None = None
    license: str
    settings: PlainValues


def read_catalogue(file: Path) -> dict[str, Source]:
    """The entries by name, in the file's order. Raises `RecipeError` with one line a mistake."""
    entries = read_yaml(file).get("sources")
    if not isinstance(entries, list) or not entries:
        raise RecipeError(f"{file}: expected a list of sources under the key 'sources', found none")
    sources: dict[str, Source] = {}
    for number, entry in enumerate(entries):
        source = validated(Source, entry, file, f"sources.{number}.")
        if source.name in sources:
            raise RecipeError(f"{file}: two sources are named {source.name!r}; give each its own name")
        sources[source.name] = source
    return sources
