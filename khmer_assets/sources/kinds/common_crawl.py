"""The kind `common_crawl`: pages of web archives, from files or found through an index of Common Crawl.

Settings of the catalogue's entry, of which `files` or `index` is given:

| key | meaning |
|---|---|
| files | WARC or WET files (.warc.gz, .warc.wet.gz, .warc): paths, globs or any address of universal_pathlib |
| index | the address of a crawl's index (https://index.commoncrawl.org/CC-MAIN-2024-51-index), or a list of them |
| urls | with `index`: which addresses are asked for, default `["*.kh"]` |
| data | with `index`: where the archives are, default https://data.commoncrawl.org/ |
| contact | an address that requests name |
| max_records | at most so many records a refresh, those in other languages not counted; default 100,000 |
| max_seconds | at most so many seconds a refresh; default a day |
| delay | seconds between two requests; default 0.2 |

What a limit or a silent host leaves is done by the next refresh. An index is asked for pages in the entry's language
(all, where it names none), and each record is fetched by its range. A file is read once, until it changes.

Pages are HTML with the status 200. For entries in Khmer, records of files that hold no Khmer letter are counted in the
figures and are no rows: of a crawl's file they are 99.9 %. So are answers that are no pages. `published_at` is the date
that the page gives, else the time of the crawl.
"""

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, Any, cast

from pydantic import Field, model_validator
from upath import UPath

from khmer_assets.foundation.settings import Settings
from khmer_assets.foundation.workers import chunks, in_parallel
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection, Item
from khmer_assets.sources.entries import files_of, files_to_collect, fingerprint_of, settings_of
from khmer_assets.sources.fetching import Fetcher, Unreachable
from khmer_assets.sources.html_pages import extract
from khmer_assets.sources.rows import Row, failure
from khmer_assets.sources.warc import MAX_PAGE_BYTES, Broken, Record, Refused, page_of, read_records

STORED_RECORDS = 500  # at once: what a kill makes the next refresh do again
ITEMS_AT_ONCE = 1_000
FAILURES_IN_A_ROW = 5  # hosts that fail so often are left alone until the next refresh

Names = Annotated[list[str], Field(min_length=1)]
Address = Annotated[str, Field(pattern=r"^https?://")]


class CommonCrawlSettings(Settings):
    """The entry's `settings`; the module's docstring says what each key means."""

    files: str | Names | None = None
    index: Address | Annotated[list[Address], Field(min_length=1)] | None = None
    urls: Names = Field(default=["*.kh"])
    data: Address = "https://data.commoncrawl.org/"
    contact: str | None = None
    max_records: Annotated[int, Field(gt=0)] = 100_000
    max_seconds: Annotated[float, Field(gt=0)] = 24 * 3600
    delay: Annotated[float, Field(ge=0)] = 0.2

    @model_validator(mode="after")
    def _has_data(self) -> "CommonCrawlSettings":
        if (self.files is None) == (self.index is None):
            raise ValueError("expected either 'files' or 'index'")
        return self


@dataclass
class Refresh:
    """One refresh: where rows go, what is still allowed, and what has been done."""

    source: Source
    settings: CommonCrawlSettings
    collection: Collection
    log: Callable[[str], None]
    figures: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether a limit is reached."""
        seconds = time.monotonic() - self.started
        records = self.figures["records"] - self.figures["other_languages"]
        return records >= self.settings.max_records or seconds >= self.settings.max_seconds


def collect(source: Source, base: Path, collection: Collection, log: Callable[[str], None]) -> dict[str, Any]:
    """Read the files that were not read yet, or ask the index and fetch what it names.

    Returns the numbers of records read, of those in other languages, of answers that are no pages, and of documents.
    Raises `RecipeError` for wrong settings, and `SourceError` for files that are not there when nothing was collected.
    """
    settings = settings_of(source, CommonCrawlSettings)
    refresh = Refresh(source, settings, collection, log)
    refresh.figures.update(records=0, other_languages=0, no_pages=0, documents=0)
    for file, version in files_to_collect(source, settings.files, base, "files", collection):
        if not refresh.over:
            _read_file(file, version, refresh)
    if settings.index:
        _fetch(refresh)
    return {**refresh.figures, "limit_reached": refresh.over}


def fingerprint(source: Source, base: Path) -> str:
    """A digest of the entry and of its files' versions; a crawl's index never changes. Raises as `collect` does."""
    settings = settings_of(source, CommonCrawlSettings)
    return fingerprint_of(source, files_of(source, settings.files, base, "files") if settings.files else [])


def _read_file(file: UPath, version: str, refresh: Refresh) -> None:
    """Store a file's pages, from the record where the last refresh ended; each place that is broken gives a row."""
    name = f"file:{file}"
    collection, figures = refresh.collection, refresh.figures
    state = json.loads(collection.noted(name) or "{}")
    if state.get("version") != version:
        for key in state.get("broken", []):
            collection.finish(key, [])  # the file is another one: its failures are found anew, or mended
        state = {"version": version, "offset": 0, "broken": [], "complete": False}
    if state["complete"]:
        refresh.log(f"{file.name}: unchanged since it was read")
        return

    def records(stream: IO[bytes]) -> Iterator[Numbered]:
        try:
            for record in read_records(stream, state["offset"], khmer_only=refresh.source.language == "khm"):
                figures["records"] += 1
                if record is None:
                    figures["other_languages"] += 1
                else:
                    yield file.name, record
                if refresh.over:
                    return
        except Exception as error:  # of the host or the format: what was read stays
            yield file.name, Broken(state["offset"], f"cannot be read on: {error}")
        else:
            state["complete"] = True

    with file.open("rb") as raw:
        numbered = records(cast(IO[bytes], raw))
        for found in chunks(in_parallel(_rows, numbered, _size), STORED_RECORDS):
            rows = [(key, row) for _, key, row in found if row is not None]
            collection.store(rows)
            broken = [key for key, row in rows if row.get("rule") == "unreadable_file"]
            state |= {"offset": found[-1][0], "broken": [*state["broken"], *broken]}
            collection.note(name, json.dumps({**state, "complete": False}))
            _count(refresh, [row for _, _, row in found])
            refresh.log(f"{file.name}: {figures['records']:,} records, {figures['documents']:,} documents")
    collection.note(name, json.dumps(state))


Numbered = tuple[str, Record | Broken]


def _size(numbered: Numbered) -> int:
    return len(numbered[1].block) if isinstance(numbered[1], Record) else 0


def _rows(numbered: list[Numbered]) -> list[tuple[int, str, Row | None]]:
    """Each record's offset, key and row, None for what is no page; a pure function, for many processes."""
    return [(record.offset, *_row(name, record)) for name, record in numbered]


def _row(name: str, record: Record | Broken) -> tuple[str, Row | None]:
    place = f"{name}, offset {record.offset:,}"
    if isinstance(record, Broken):
        return place, failure("unreadable_file", place, record.reason)
    about: Row = {"url": record.url, "published_at": record.date}
    place = f"{place} ({record.url})"
    key = f"record:{record.key}"
    try:
        if record.is_text:
            if len(record.block) > MAX_PAGE_BYTES:
                raise Refused("too_large", f"the text has over {MAX_PAGE_BYTES:,} bytes")
            return key, {**about, "text": record.block.decode("utf-8", "replace"), "place": place}
        html = page_of(record)
        if html is None:
            return key, None
        return key, _article(html, about, place)
    except Refused as error:
        return key, {**about, **failure(error.rule, place, str(error))}


def _article(html: str, about: Row, place: str) -> Row:
    try:
        found = extract(html, place, about["url"])
    except Exception as error:  # of the parsers, on what is hardly HTML
        raise Refused("unreadable_page", f"the page cannot be parsed: {error}") from None
    return {**about, **{name: value for name, value in found.items() if value is not None}}


def _count(refresh: Refresh, rows: list[Row | None]) -> None:
    refresh.figures["no_pages"] += rows.count(None)
    refresh.figures["documents"] += sum(1 for row in rows if row is not None and not row.get("rule"))


def _fetch(refresh: Refresh) -> None:
    """Ask the index, then fetch the records that it names; both are items, so that a kill loses one request."""
    settings, collection = refresh.settings, refresh.collection
    indexes = [settings.index] if isinstance(settings.index, str) else settings.index or []
    collection.add((f"query:{index} {url}", {"index": index, "url": url}) for index in indexes for url in settings.urls)
    failed: set[str] = set()
    in_a_row = 0
    with Fetcher(settings.delay, settings.contact) as fetcher:
        while waiting := [item for item in collection.waiting(ITEMS_AT_ONCE + len(failed)) if item[0] not in failed]:
            for key, item in waiting:
                if refresh.over:
                    return
                try:
                    step = {"query": _ask_pages, "index": _ask_records, "record": _fetch_record}[key.partition(":")[0]]
                    step(fetcher, key, item, refresh)
                    in_a_row = 0
                except Unreachable as error:
                    row = failure("unreachable", key.partition(":")[2], str(error))
                    if error.status is not None:
                        collection.finish(key, [row])  # it would be the same the next time
                        continue
                    collection.store([(key, row)])
                    failed.add(key)
                    in_a_row += 1
                    if in_a_row == FAILURES_IN_A_ROW:
                        refresh.log(f"{error}; the host is left alone until the next refresh")
                        return
            counts = collection.counts()
            refresh.log(f"{refresh.figures['documents']:,} documents; {counts['waiting']:,} requests wait")


def _parameters(item: dict[str, Any], refresh: Refresh) -> dict[str, Any]:
    language = refresh.source.language
    filters = ["=status:200", *([f"~languages:.*{language}.*"] if language else [])]
    return {"url": item["url"], "output": "json", "filter": filters}


def _ask_pages(fetcher: Fetcher, key: str, item: dict[str, Any], refresh: Refresh) -> None:
    answer = fetcher.get(item["index"], {**_parameters(item, refresh), "showNumPages": "true"})
    try:
        found = json.loads(answer.body)
        count = int(found["pages"]) if isinstance(found, dict) else int(found)
    except (ValueError, KeyError, TypeError) as error:
        raise Unreachable(f"{item['index']}: not what an index answers: {error!r}", 200) from None
    pages: list[Item] = [
        (f"index:{item['index']} {item['url']} {page}", {**item, "page": page}) for page in range(count)
    ]
    refresh.collection.finish(key, [], found=pages)


def _ask_records(fetcher: Fetcher, key: str, item: dict[str, Any], refresh: Refresh) -> None:
    try:
        answer = fetcher.get(item["index"], {**_parameters(item, refresh), "page": item["page"]})
        lines = answer.body.splitlines()
    except Unreachable as error:
        if error.status != 404:
            raise
        lines = []  # an index answers so when there are no captures
    found: list[Item] = []
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            capture = json.loads(line)
            file, offset, length = str(capture["filename"]), int(capture["offset"]), int(capture["length"])
            if offset < 0 or length <= 0:
                raise ValueError("offset and length are no place in a file")
            place = {"file": file, "offset": offset, "length": length, "url": capture.get("url")}
            found.append((f"record:{capture.get('digest') or f'{file} {offset}'}", place))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            at = f"{item['index']}, {item['url']}, page {item['page']}, line {number}"
            rows.append(failure("malformed_row", at, f"not a capture: {error!r}", line.decode("utf-8", "replace")))
    refresh.collection.finish(key, rows, found=found)


def _fetch_record(fetcher: Fetcher, key: str, item: dict[str, Any], refresh: Refresh) -> None:
    first, last = item["offset"], item["offset"] + item["length"] - 1
    refresh.figures["records"] += 1
    if item["length"] > MAX_PAGE_BYTES:
        place = f"{item['file']}, offset {first} ({item['url']})"
        too_large = failure("too_large", place, f"the record has {item['length']:,} bytes, over {MAX_PAGE_BYTES:,}")
        refresh.collection.finish(key, [too_large])
        return
    address = f"{refresh.settings.data.rstrip('/')}/{item['file'].lstrip('/')}"
    # a host that ignores the range answers 200 and would send the whole file: its body is not read
    ranged = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"}
    answer = fetcher.get(address, headers=ranged, expected=206, most_bytes=item["length"])
    record = next(read_records(io.BytesIO(answer.body)), None) or Broken(0, "there is no record in these bytes")
    _, row = _row(item["file"], replace(record, offset=first))
    _count(refresh, [row])
    refresh.collection.finish(key, [] if row is None else [row])
