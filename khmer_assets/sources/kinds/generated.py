"""The kind `generated`: short Khmer and English texts composed from the sample's facts.

Settings: `documents`, how many; `seed`, which decides what they say.
"""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Annotated

from pydantic import Field

from khmer_assets.foundation.settings import Settings, digest_of
from khmer_assets.khmer.script import Language
from khmer_assets.sample import composition
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.entries import settings_of

_KHMER_SHARE = 0.6


class GeneratedSettings(Settings):
    """`documents`: how many texts. `seed`: another seed composes other texts."""

    documents: Annotated[int, Field(gt=0, le=10_000_000)]
    seed: int


def read(source: Source, base: Path) -> Iterator[dict[str, str | None]]:
    """Rows of id, text, language, category and title; three in five are Khmer, the others English.

    A row depends on the seed and on its number alone. Raises `RecipeError` on settings that are not understood.
    """
    settings = settings_of(source, GeneratedSettings)
    return (_row(settings.seed, number) for number in range(settings.documents))


def fingerprint(source: Source, base: Path) -> str:
    """A digest of the settings and of what the generator knows: equal digests mean equal rows."""
    return digest_of([settings_of(source, GeneratedSettings).model_dump(), composition.fingerprint()])


def _row(seed: int, number: int) -> dict[str, str | None]:
    rng = Random(f"{seed}/{number}")
    language: Language = "khm" if rng.random() < _KHMER_SHARE else "eng"
    category, text = composition.compose_text(rng, language)
    return {"id": str(number), "text": text, "language": language, "category": category, "title": None}
