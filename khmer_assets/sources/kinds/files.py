"""Sources of kind `files`: text, Markdown, HTML, JSON lines, CSV, TSV and Parquet, plain or compressed.

Settings of the catalogue's entry:

| key | meaning |
|---|---|
| path | a file or glob, or a list of them, relative to the catalogue or any address that universal_pathlib knows |
| text | the field with the text, or several: each one that is not empty gives a document; default `text` |
| id, title, category, url, published_at | the fields with these, where there are any |
| encoding | default utf-8 |
| split | txt and md: `document` (default, the whole file), `paragraph` (parted by blank lines) or `line` |

The format is told by the ending: .txt .md .html .htm .jsonl .csv .tsv .parquet, each also with .gz or .zst after it.
Fields belong to rows (jsonl, csv, tsv, parquet); an HTML page's title, address and date are read from the page.
"""

import codecs
import csv
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, Literal, cast

from pydantic import Field, field_validator
from upath import UPath

from khmer_assets.foundation.settings import Settings
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.entries import files_of, fingerprint_of, settings_of
from khmer_assets.sources.html_pages import extract
from khmer_assets.sources.parquet_columns import read_columns
from khmer_assets.sources.rows import (
    MAX_DOCUMENT_BYTES,
    MissingColumn,
    Row,
    SourceError,
    failure,
    plain,
    require_text_column,
)

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_UNPACKED_BYTES = 2_000_000_000  # of a compressed Parquet file, which is unpacked to the temporary folder
TEXTS, PAGES, TABLES = (".txt", ".md"), (".html", ".htm"), (".jsonl", ".csv", ".tsv", ".parquet")
FORMATS = (*TEXTS, *PAGES, *TABLES)
# what a file that ends as a text is, where it begins with these bytes
NO_TEXT = {
    b"\x1f\x8b": "compressed with gzip: let its name end in .gz, or unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: let its name end in .zst, or unpack it",
    b"BZh": "compressed with bzip2: unpack it, or compress it with gzip or zstd",
    b"\xfd7zXZ": "compressed with xz: unpack it, or compress it with gzip or zstd",
    b"PK\x03\x04": "a zip archive or an office document: unpack it, or save it as text",
    b"%PDF": "a PDF: save it as text",
    b"PAR1": "Parquet: let its name end in .parquet",
}
PEEKED = 4_096  # bytes
UTF_16_HIGH = (0.4, 0.9)  # the share of bytes that are 0 or, in Khmer, 0x17: the upper halves, and not much beside
BEGIN_OF_JSON = ("[", "{", "[{")  # a first line, where JSON is spread over many
WHOLE_JSON = (
    "is one JSON document, and here every line must be an object of its own; `jq -c '.[]' FILE > FILE.jsonl` writes an "
    "array so"
)

Names = Annotated[list[str], Field(min_length=1)]


class FilesSettings(Settings):
    """The entry's `settings`; the module's docstring says what each key means."""

    path: str | Names
    text: str | Names = "text"
    id: str | None = None
    title: str | None = None
    category: str | None = None
    url: str | None = None
    published_at: str | None = None
    encoding: str = "utf-8"
    split: Literal["document", "paragraph", "line"] = "document"

    @field_validator("encoding")
    @classmethod
    def _known(cls, encoding: str) -> str:
        try:
            "a".encode(encoding).decode(encoding, "surrogateescape")  # as files are read; base64 and idna cannot
            return codecs.lookup(encoding).name
        except (LookupError, UnicodeError):
            raise ValueError("expected the name of a text encoding, for example utf-8 or utf-16") from None


def read(source: Source, base: Path) -> Iterator[Row]:
    """The rows of all files, in the order of their names; a file that breaks off gives a row that says so.

    Raises `RecipeError` for wrong settings, `SourceError` for a glob that finds nothing or a format that is not known.
    """
    settings = settings_of(source, FilesSettings)
    files = _find(source, settings, base)
    return (row for file in files for row in _read_file(file, settings))


def fingerprint(source: Source, base: Path) -> str:
    """A digest of the entry and of the names and contents of its files. Raises as `read` does."""
    return fingerprint_of(source, _find(source, settings_of(source, FilesSettings), base))


def _find(source: Source, settings: FilesSettings, base: Path) -> list[UPath]:
    files = files_of(source, settings.path, base)
    try:
        for file in files:
            format_of(file)
    except SourceError as error:
        raise SourceError(f"source {source.name!r}: {error}") from None
    return files


def _as_list(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


def format_of(file: UPath) -> str:
    """The one of `FORMATS` that the file's name says. Raises `SourceError` where it says none."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in FORMATS:
        raise SourceError(
            f"{file} has no known format; expected a name that ends in {', '.join(FORMATS)}, and .gz or .zst after it "
            "where it is compressed"
        )
    return suffixes[-1]


@dataclass(frozen=True)
class Record:
    """A row of a table: where it stands, and its fields."""

    place: str
    values: dict[str, Any]


class NoText(ValueError):
    """A file that is not what its name says, as a whole; the message says what it is, and what to do."""


def first_records(file: UPath, count: int, encoding: str = "utf-8") -> list[dict[str, Any]]:
    """All fields of the first rows that can be read: of a table as they are, of texts and pages as `text`."""
    with file.open("rb") as raw:
        found = _read_stream(_decompressed(raw, file), file, FilesSettings(path="", encoding=encoding), None, [])
        return [row.values if isinstance(row, Record) else row for row in islice(found, count)]


def _read_file(file: UPath, settings: FilesSettings) -> Iterator[Row]:
    place = file.name
    rows = 0
    texts = _as_list(settings.text)
    wanted = {*texts, *(field for field in _fields(settings).values() if field)}
    try:
        with file.open("rb") as raw:
            for record in _read_stream(_decompressed(raw, file), file, settings, wanted, texts):
                for row in _documents(record, settings) if isinstance(record, Record) else [record]:
                    place = row["place"] or place
                    rows += 1
                    yield {**row, "encoding": settings.encoding}
    except MissingColumn as error:
        yield failure("missing_column", file.name, str(error))
    except NoText as error:
        yield failure("unreadable_file", file.name, str(error))
    except Exception as error:
        # whatever the libraries of the formats raise: what was read stays, and the row says where it ended
        where = f"after {place}" if rows else "at its beginning"
        yield failure("unreadable_file", file.name, f"cannot be read {where}: {error}")
    else:
        if not rows:
            yield failure("empty_file", file.name, "there is nothing in it")


def _decompressed(raw: Any, file: UPath) -> IO[bytes]:
    compression = COMPRESSIONS.get(file.suffix.lower())
    if compression is None:
        stream: IO[bytes] = raw
        return stream
    import pyarrow as pa  # notices a stream that is cut off, for zstd too, and reads several members as one

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression))


def _read_stream(
    stream: IO[bytes], file: UPath, settings: FilesSettings, wanted: set[str] | None, texts: list[str]
) -> Iterator[Row | Record]:
    """`wanted`: the columns of Parquet to read, None for all. `texts`: of these a table must have one column."""
    match format_of(file):
        case ".parquet":
            yield from _read_parquet(stream, file.name, wanted, texts)
        case ".jsonl":
            yield from _read_json_lines(_text(stream, settings), file.name)
        case ".csv" | ".tsv" as suffix:
            yield from _read_table(_text(stream, settings), file.name, texts, "," if suffix == ".csv" else "\t")
        case ".html" | ".htm":
            yield from _read_html(_text(stream, settings), file.name)
        case _:
            yield from _read_text(_text(stream, settings), file.name, settings)


def _text(stream: IO[bytes], settings: FilesSettings) -> io.TextIOWrapper:
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(Any, stream))
    begins = buffered.peek(PEEKED)[:PEEKED]
    require_text(begins, settings.encoding)
    newline = "\r" if b"\r" in begins and b"\n" not in begins else "\n"
    # bytes that are no characters become lone surrogates, which set their row alone aside
    return io.TextIOWrapper(buffered, settings.encoding, errors="surrogateescape", newline=newline)


def require_text(begins: bytes, encoding: str = "utf-8") -> None:
    """Raises `NoText` where the beginning of a file shows that it is no text, or not in UTF-8 as it should be."""
    for magic, what in NO_TEXT.items():
        if begins.startswith(magic):
            raise NoText(f"is {what}")
    if encoding == "utf-8" and (found := _utf_16(begins)):
        raise NoText(f"is in UTF-16: set encoding: {found} in settings, or save it in UTF-8")


def _utf_16(begins: bytes) -> str | None:
    """The name of the encoding, where it is UTF-16."""
    if begins.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    least, most = UTF_16_HIGH
    even, odd = (half.count(0) + half.count(0x17) for half in (begins[::2], begins[1::2]))
    if least * len(begins) < even + odd < most * len(begins):
        return "utf-16-le" if odd > even else "utf-16-be"
    return None


def _lines(stream: io.TextIOWrapper) -> Iterator[tuple[int, str, bool]]:
    """Number, line, and whether it is whole; of a line that is too long only the beginning comes."""
    number, end = 0, "\n"
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        whole = len(line) <= MAX_DOCUMENT_BYTES
        rest = line
        if whole and line.endswith("\r"):
            end = "\r"  # of every line
        while not whole and rest and not rest.endswith(end):
            rest = stream.readline(MAX_DOCUMENT_BYTES)
        yield number, line.removeprefix("\ufeff") if number == 1 else line, whole


def _read_text(stream: io.TextIOWrapper, name: str, settings: FilesSettings) -> Iterator[Row]:
    if settings.split == "document":
        text = stream.read(MAX_DOCUMENT_BYTES + 1)  # one more than is allowed, so that a larger one is noticed
        if text:
            yield {"text": text, "place": name}
        return
    paragraph: list[str] = []
    first = 0
    for number, line, _ in _lines(stream):
        blank = not line.strip()
        if paragraph and (blank or settings.split == "line"):
            yield {"text": "".join(paragraph).rstrip("\r\n"), "place": f"{name}, line {first}"}
            paragraph = []
        if not blank:
            first = first if paragraph else number
            paragraph.append(line)
    if paragraph:
        yield {"text": "".join(paragraph).rstrip("\r\n"), "place": f"{name}, line {first}"}


def _read_html(stream: io.TextIOWrapper, name: str) -> Iterator[Row]:
    page = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(page) > MAX_DOCUMENT_BYTES or re.search("[\ud800-\udfff]", page):
        yield {"text": page, "place": name}  # set aside for its size or its bytes
    elif page.strip():
        yield extract(page, name)


def _read_json_lines(stream: io.TextIOWrapper, name: str) -> Iterator[Row | Record]:
    good = False
    for number, line, whole in _lines(stream):
        place = f"{name}, line {number}"
        if not whole:
            yield {"text": line, "place": place}  # set aside for its size
        elif line.strip():
            try:
                values = json.loads(line, object_pairs_hook=_each_key_once)
            except (ValueError, RecursionError) as error:
                if not good and line.strip() in BEGIN_OF_JSON:
                    raise NoText(WHOLE_JSON) from None
                yield failure("malformed_row", place, f"not JSON: {error}", line)
                continue
            good = True
            if isinstance(values, dict):
                yield Record(place, values)
            elif isinstance(values, list):
                yield failure("malformed_row", place, WHOLE_JSON, line)
            else:
                found = type(values).__name__
                yield failure("malformed_row", place, f"expected a JSON object, found {found}", line)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} is given twice")
    return values


def _read_table(stream: io.TextIOWrapper, name: str, texts: list[str], delimiter: str) -> Iterator[Row | Record]:
    csv.field_size_limit(MAX_DOCUMENT_BYTES)
    raw: list[str] = []  # the lines of the row that is being read
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line, _ in _lines(stream):  # noqa: B007
            raw.append(line)
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        raw.clear()
        first = number + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # the reader goes on with the next line; a quote that is never closed has taken the rest of the file
            yield failure("malformed_row", f"{name}, lines {first} to {number}", str(error), "".join(raw))
            continue
        place = f"{name}, line {first}"
        if header is None:
            header = row
            if len(header) == 1 and header[0] not in texts and any(mark in header[0] for mark in ",;\t"):
                raise MissingColumn(f"{header[0]!r:.100} is one field: commas part those of .csv, tabs those of .tsv")
            require_text_column(header, texts)
            if twice := [text for text in texts if header.count(text) > 1]:
                raise NoText(f"has the column {twice[0]!r} twice; rename one")
        elif row and len(row) != len(header):
            reason = f"has {len(row)} fields, and the header {len(header)}"
            yield failure("malformed_row", place, reason, "".join(raw))
        elif row:
            yield Record(place, dict(zip(header, row, strict=True)))


def _read_parquet(stream: IO[bytes], name: str, wanted: set[str] | None, texts: list[str]) -> Iterator[Record]:
    with tempfile.TemporaryFile() as seekable:
        if not stream.seekable():
            _unpack(stream, seekable)
            stream = seekable
        for number, values in enumerate(read_columns(stream, wanted, texts), start=1):
            yield Record(f"{name}, row {number}", values)


def _unpack(stream: IO[bytes], target: IO[bytes]) -> None:
    unpacked = 0
    while block := stream.read(1 << 20):
        unpacked += len(block)
        if unpacked > MAX_UNPACKED_BYTES:
            raise NoText(
                f"has over {MAX_UNPACKED_BYTES:,} bytes when unpacked; unpack it yourself: Parquet compresses by itself"
            )
        target.write(block)


def _fields(settings: FilesSettings) -> dict[str, str | None]:
    return {key: getattr(settings, key) for key in ("id", "title", "category", "url", "published_at")}


def _documents(record: Record, settings: FilesSettings) -> Iterable[Row]:
    """The documents of one row: one for each text field that is not empty."""
    values, place = record.values, record.place
    names = _as_list(settings.text)
    for name in names:
        if values.get(name) is not None and not isinstance(values[name], str):
            found = type(values[name]).__name__
            yield failure("malformed_row", place, f"{name!r} holds {found}, expected a text", str(values[name]))
            return
    about = {key: plain(values.get(field)) if field else None for key, field in _fields(settings).items()}
    filled = [name for name in names if (values.get(name) or "").strip()]
    if not filled:
        fields = " or ".join(map(repr, names))
        present = ", ".join(map(repr, values)) or "no fields"
        yield {**about, **failure("missing_text", place, f"no text in {fields}; the row has {present}")}
    for name in filled:
        row = {**about, "text": values[name], "place": place}
        if len(names) > 1 and about["id"]:
            row["id"] = f"{about['id']}:{name}"
        yield row
