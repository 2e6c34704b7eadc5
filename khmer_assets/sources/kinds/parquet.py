"""The kind `parquet`: tables of documents in Parquet files, local, on s3:// or on hf://.

Settings of the catalogue's entry:

| key | meaning |
|---|---|
| path | a file or glob, or a list of them, relative to the catalogue or any address that universal_pathlib knows |
| text | the column with the text; default `text` |
| id, url, published_at, language | the columns with these; default `id`, `url`, `date`, `language`, as in FineWeb2 |
| title, category | the columns with these, where there are any |
| limit | at most so many rows of all files together; default all |

Only the columns that are named are read, a page of the file after the other, so memory does not grow with the file.
Set aside are rows without text (missing_text), texts that are no strings (malformed_row), files without the column of
the text (missing_column) and files that break off (unreadable_file).
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import Field
from upath import UPath

from khmer_assets.foundation.settings import Settings
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.entries import files_of, fingerprint_of, settings_of
from khmer_assets.sources.parquet_columns import read_columns
from khmer_assets.sources.rows import MissingColumn, Row, failure, plain


class ParquetSettings(Settings):
    """The entry's `settings`; the module's docstring says what each key means."""

    path: str | Annotated[list[str], Field(min_length=1)]
    text: str = "text"
    id: str | None = "id"
    title: str | None = None
    category: str | None = None
    url: str | None = "url"
    published_at: str | None = "date"
    language: str | None = "language"
    limit: Annotated[int, Field(gt=0)] | None = None


def read(source: Source, base: Path) -> Iterator[Row]:
    """The rows of all files, in the order of their names; a file that breaks off gives a row that says so.

    Raises `RecipeError` for wrong settings, `SourceError` for a glob that finds nothing.
    """
    settings = settings_of(source, ParquetSettings)
    files = files_of(source, settings.path, base)
    return islice((row for file in files for row in _read_file(file, settings)), settings.limit)


def fingerprint(source: Source, base: Path) -> str:
    """A digest of the entry and of the names and versions of its files. Raises as `read` does."""
    return fingerprint_of(source, files_of(source, settings_of(source, ParquetSettings).path, base))


def _read_file(file: UPath, settings: ParquetSettings) -> Iterator[Row]:
    fields = settings.model_dump(exclude={"path", "limit"}, exclude_none=True)
    number = 0
    try:
        with file.open("rb") as stream:
            for number, values in enumerate(read_columns(stream, set(fields.values()), [settings.text]), start=1):
                place = f"{file.name}, row {number}"
                about = {name: plain(values.get(column)) for name, column in fields.items() if name != "text"}
                text = values[settings.text]
                if text is None:
                    yield {**about, **failure("missing_text", place, f"{settings.text!r} is null")}
                elif not isinstance(text, str):
                    reason = f"{settings.text!r} holds {type(text).__name__}, expected a text"
                    yield {**about, **failure("malformed_row", place, reason, str(text))}
                else:
                    yield {**about, "text": text, "place": place}
    except MissingColumn as error:
        yield failure("missing_column", file.name, str(error))
    except Exception as error:
        # whatever the libraries of the format and the address raise: what was read stays
        where = f"after row {number}" if number else "at its beginning"
        yield failure("unreadable_file", file.name, f"cannot be read {where}: {error}")
    else:
        if not number:
            yield failure("empty_file", file.name, "there is nothing in it")
