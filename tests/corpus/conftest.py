"""Settings and small documents that the tests of the corpus stage share."""

import polars as pl
import pytest

from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sources.documents import DOCUMENT, content_hash


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe.load(SAMPLE_RECIPE)


def documents(source: str, texts: list[str], language: str | None = None) -> pl.LazyFrame:
    """A frame of documents with the ids `<source>:0`, `<source>:1` and so on."""
    rows = [
        {
            "id": f"{source}:{number}",
            "source": source,
            "text": text,
            "language": language,
            "license": "CC0-1.0",
            "content_hash": content_hash(text),
        }
        for number, text in enumerate(texts)
    ]
    return pl.DataFrame(rows, schema=DOCUMENT).lazy()
