"""The catalogue's sources as documents: what holds for every kind. A module in `kinds/` reads each kind."""

import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl

from khmer_assets.sources import kinds
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.documents import ALL_COLUMNS, content_hash
from khmer_assets.sources.rows import MAX_DOCUMENT_BYTES, TEXT_OF_REMOVED, Row

BATCH_ROWS = 2_000
BATCH_CHARACTERS = 8_000_000

_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE = re.compile("[\udc80-\udcff]")  # one that could not be decoded


def read(source: Source, base: Path) -> pl.LazyFrame:
    """All rows of a source, in batches: the columns of `DOCUMENT` with rule, measure (null here) and reason.

    Relative addresses are relative to `base`, the catalogue's folder. An id is `<source>:<the given id>`, else
    `<source>:<the first 16 digits of the content hash>`. Set aside are rows without text (missing_text), texts that
    are not Unicode (undecodable), documents over 50 MB (too_large), ids that were there before (duplicate_id), rows
    without an id whose text was (exact_duplicate) and what the kind's own module finds. Raises `SourceError` when the
    data is not there, `RecipeError` when the entry's settings are wrong.
    """
    from polars.io.plugins import register_io_source

    kind = kind_of(source)
    kind.read(source, base)  # finds wrong settings and missing data before the frame is used

    def read_batches(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        for batch in batches(source, kind.read(source, base)):
            if n_rows is not None:
                batch = batch.head(n_rows)
                n_rows -= batch.height
            if predicate is not None:
                batch = batch.filter(predicate)
            yield batch.select(with_columns) if with_columns is not None else batch
            if n_rows == 0:
                return

    return register_io_source(read_batches, schema=ALL_COLUMNS)


def fingerprint(source: Source, base: Path) -> str:
    """A digest that changes exactly when the source's data or its entry in the catalogue changes.

    Raises as `read` does.
    """
    return str(kind_of(source).fingerprint(source, base))


def fetches(source: Source) -> bool:
    """Whether the source's kind fetches what is new and collects it, rather than read what lies ready."""
    return hasattr(kind_of(source), "collect")


def kind_of(source: Source) -> ModuleType:
    """The module in `kinds/` that knows the source's kind."""
    return importlib.import_module(f"{kinds.__name__}.{source.kind}")


def batches(source: Source, rows: Iterator[Row]) -> Iterator[pl.DataFrame]:
    """A kind's rows as tables of `ALL_COLUMNS`, at least one, with the rules that `read` names."""
    places: dict[str, str] = {}  # where each id was first given
    batch: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        document = _document(source, row)
        place = row.get("place") or "a row"
        if document["rule"] is None:
            if (first := places.get(document["id"])) is not None:
                document["rule"] = "duplicate_id" if row.get("id") else "exact_duplicate"
                what = f"the id {document['id']!r} was given" if row.get("id") else "the same text was there"
                document["reason"] = f"{place}: {what} before, at {first}"
            else:
                places[document["id"]] = place
        batch.append({column: _without_surrogates(value) for column, value in document.items()})
        characters += len(document["text"])
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield pl.DataFrame(batch, schema=ALL_COLUMNS, orient="row")
            batch, characters = [], 0
    yield pl.DataFrame(batch, schema=ALL_COLUMNS, orient="row")


def _document(source: Source, row: Row) -> dict[str, Any]:
    place = row.get("place") or "a row"
    given = {column: row.get(column) for column in ("id", "title", "language", "category", "url", "published_at")}
    text, rule, reason, measure = row.get("text") or "", row.get("rule"), row.get("reason"), None
    if rule is None and any(value and _SURROGATE.search(value) for value in (text, *given.values())):
        rule, reason = "undecodable", f"{place}: {_undecodable(row, (text, *given.values()))}"
    if rule is None and not text.strip():
        rule, reason = "missing_text", f"{place}: there is no text"
    text = _without_surrogates(text)
    size = len(text.encode())
    if size > MAX_DOCUMENT_BYTES:
        text = text[:TEXT_OF_REMOVED]
        if rule is None:
            rule, measure = "too_large", float(size)
            reason = f"{place}: over {MAX_DOCUMENT_BYTES:,} bytes, more than a document may have; split it"
    digest = content_hash(text)
    return {
        **given,
        "id": f"{source.name}:{given['id'] or digest[:16]}",
        "source": source.name,
        "text": text,
        "language": given["language"] or source.language,
        "license": source.license,
        "content_hash": digest,
        "rule": rule,
        "measure": measure,
        "reason": reason,
    }


def _undecodable(row: Row, values: Iterable[str | None]) -> str:
    if not any(_BYTE.search(value) for value in values if value):
        return "holds half of a pair of surrogates, such as \\ud800, shown as \ufffd here"
    told = "holds bytes that are no characters, shown as \ufffd here"
    if (encoding := row.get("encoding")) is not None:
        told += f"; if the file is not in {encoding}, set encoding in settings"
    return told


def _without_surrogates(value: Any) -> Any:
    return _SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value
