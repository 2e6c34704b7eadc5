"""The kind `wikipedia`: articles of a MediaWiki wiki from its XML dump, and what changed since from its API.

Settings of the catalogue's entry, of which `dump`, `api` or both are given:

| key | meaning |
|---|---|
| dump | the pages-articles dump (.xml or .xml.bz2), or a list: paths, globs or any address of universal_pathlib |
| api | the address of the wiki's api.php; without a dump, changes begin as far back as the wiki lists them |
| contact | an address that requests name, as Wikimedia's user agent policy asks for |
| max_pages | at most so many pages a refresh; default one million |
| max_seconds | at most so many seconds a refresh; default six hours |
| delay | seconds between two requests; default 0.2 |

What a limit leaves is done by the next refresh. A dump is read once, until its file changes; where the reading was
ended it goes on. Articles are the pages of namespace 0 that are no redirects; `published_at` is the time of the
revision. A page that changed gives another row beside the one before it; a page that vanished stays.
"""

import bz2
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Annotated, Any, cast
from urllib.parse import quote

from pydantic import Field, model_validator
from upath import UPath

from khmer_assets.foundation.settings import Settings, digest_of
from khmer_assets.foundation.workers import chunks, in_parallel
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection
from khmer_assets.sources.entries import files_of, files_to_collect, fingerprint_of, settings_of
from khmer_assets.sources.fetching import Answer, Fetcher, Unreachable
from khmer_assets.sources.rows import Row, SourceError, failure
from khmer_assets.sources.wikitext import MarkupError, Names, plain_text

BLOCK_BYTES = 1 << 18
STORED_PAGES = 1_000  # at once: what a kill makes the next refresh do again
PAGES_A_REQUEST = 50  # the API's limit for everybody
LISTED = timedelta(days=30)  # how far back Wikimedia's wikis list changes

MISSHAPEN = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
)  # what reading an answer of another kind raises


class WikipediaSettings(Settings):
    """The entry's `settings`; the module's docstring says what each key means."""

    dump: str | Annotated[list[str], Field(min_length=1)] | None = None
    api: Annotated[str, Field(pattern=r"^https?://")] | None = None
    contact: str | None = None
    max_pages: Annotated[int, Field(gt=0)] = 1_000_000
    max_seconds: Annotated[float, Field(gt=0)] = 6 * 3600
    delay: Annotated[float, Field(ge=0)] = 0.2

    @model_validator(mode="after")
    def _has_data(self) -> "WikipediaSettings":
        if self.dump is None and self.api is None:
            raise ValueError("expected 'dump', 'api' or both")
        return self


@dataclass
class Site:
    """What a wiki says of itself: the address that articles' titles follow, and its namespaces by number."""

    articles: str = ""
    namespaces: dict[int, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A page as it is stored. `article`: whether it is one, and no redirect or page of another kind."""

    id: str
    title: str
    changed_at: str
    article: bool
    wikitext: str
    place: str
    url: str
    names: Names


@dataclass
class Refresh:
    """One refresh: where rows go, what is still allowed, and what has been done."""

    settings: WikipediaSettings
    collection: Collection
    log: Callable[[str], None]
    figures: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether a limit is reached."""
        seconds = time.monotonic() - self.started
        return self.figures["pages"] >= self.settings.max_pages or seconds >= self.settings.max_seconds


def collect(source: Source, base: Path, collection: Collection, log: Callable[[str], None]) -> dict[str, Any]:
    """Read the dumps that were not read yet, then what changed since the last refresh.

    Returns the numbers of pages read, of articles, of pages skipped as they are no articles, and of pages gone. Raises
    `RecipeError` for wrong settings, and `SourceError` for a dump that is not there when nothing was collected before.
    """
    settings = settings_of(source, WikipediaSettings)
    refresh = Refresh(settings, collection, log)
    refresh.figures.update(pages=0, articles=0, skipped=0, gone=0)
    for file, version in files_to_collect(source, settings.dump, base, "dump", collection):
        if not refresh.over:
            _read_dump(file, version, refresh)
    if settings.api:
        _read_changes(settings.api, refresh)
    return {**refresh.figures, "limit_reached": refresh.over}


def fingerprint(source: Source, base: Path) -> str:
    """A digest of the entry, of the dumps' versions, and of the newest change that the API lists.

    Raises `RecipeError` for wrong settings and `SourceError` for a dump or an API that is not there.
    """
    settings = settings_of(source, WikipediaSettings)
    files = files_of(source, settings.dump, base, "dump") if settings.dump else []
    newest = None
    if settings.api:
        newest_change = {"list": "recentchanges", "rcnamespace": 0, "rctype": "edit|new", "rcprop": "ids", "rclimit": 1}
        try:
            with Fetcher(settings.delay, settings.contact) as fetcher:
                newest = _ask(fetcher, settings.api, newest_change)["query"]["recentchanges"]
        except (Unreachable, *MISSHAPEN) as error:
            raise SourceError(f"source {source.name!r}: {error}; check 'api' in its entry of the catalogue") from error
    return digest_of([fingerprint_of(source, files), newest])


def read_pages(stream: IO[bytes], place: str) -> Iterator[Page]:
    """The pages of an XML dump, in its order, one in memory at a time.

    Raises what the stream raises, and `lxml.etree.XMLSyntaxError`, after the pages before the place where it breaks
    off. The XML parser's own limits hold: 10 MB a text, no entities from elsewhere.
    """
    from lxml import etree

    parser = etree.XMLPullParser(
        events=("end",), tag=("{*}siteinfo", "{*}revision", "{*}page"), resolve_entities=False, no_network=True
    )
    site, names = Site(), Names.of({})
    broken: Exception | None = None
    read = getattr(stream, "read1", stream.read)  # what is there before an error; `read` would drop it
    while broken is None:
        try:
            block = read(BLOCK_BYTES)
            parser.feed(block) if block else parser.close()
        except Exception as error:  # the compression's, the host's or the parser's
            broken = error
            block = b""
        for _, element in parser.read_events():
            match etree.QName(element).localname:
                case "siteinfo":
                    site = _site_of_dump(element)
                    names = Names.of(site.namespaces)
                case "revision":
                    for former in element.itersiblings(element.tag, preceding=True):
                        former.getparent().remove(former)  # the last one is the page's text
                case "page":
                    yield _page_of_dump(element, site, names, place)
                    element.clear()
                    while element.getprevious() is not None:
                        del element.getparent()[0]
        if not block:
            break
    if broken is not None:
        raise broken


def _site_of_dump(element: Any) -> Site:
    found: dict[int, set[str]] = {}
    for namespace in element.iterfind(".//{*}namespace"):
        if namespace.text:
            found.setdefault(int(namespace.get("key", 0)), set()).add(namespace.text)
    return Site((element.findtext("{*}base") or "").rpartition("/")[0], found)


def _page_of_dump(element: Any, site: Site, names: Names, place: str) -> Page:
    number, title = (element.findtext(f"{{*}}{name}") or "" for name in ("id", "title"))
    revision = "{*}revision/{*}"
    wikitext = (element.findtext("{*}ns") or "0").strip() == "0" and (
        element.findtext(f"{revision}model") or "wikitext"
    ) == "wikitext"
    return Page(
        id=number,
        title=title,
        changed_at=element.findtext(f"{revision}timestamp") or "",
        article=wikitext and element.find("{*}redirect") is None,
        wikitext=element.findtext(f"{revision}text") or "",
        place=f"{place}, page {number} ({title})",
        url=_address(site, title),
        names=names,
    )


def _address(site: Site, title: str) -> str:
    return f"{site.articles}/{quote(title.replace(' ', '_'), safe='/:,;@()!*~')}" if site.articles else ""


def _rows(pages: list[tuple[int, Page]]) -> list[tuple[int, str, Row]]:
    """The number, key and row of each article; a pure function, for many processes."""
    return [(number, f"page:{page.id}", _row(page)) for number, page in pages]


def _row(page: Page) -> Row:
    about: Row = {"title": page.title, "url": page.url or None, "published_at": page.changed_at or None}
    try:
        text, category = plain_text(page.wikitext, page.names)
    except MarkupError as error:
        return {**about, **failure("unreadable_markup", page.place, str(error), page.wikitext)}
    return {**about, "category": category, "text": text, "place": page.place}


def _read_dump(file: UPath, version: str, refresh: Refresh) -> None:
    """Store a dump's articles, from the page where the last refresh ended; a place where it breaks off gives a row."""
    name = f"dump:{file}"
    collection, figures = refresh.collection, refresh.figures
    before = json.loads(collection.noted(name) or "{}")
    if before.get("version") != version:
        before = {"version": version, "pages": 0, "newest": "", "complete": False}
    if before["complete"]:
        refresh.log(f"{file.name}: unchanged since it was read")
        return
    now = dict(before)
    failures: list[Row] = []

    def articles() -> Iterator[tuple[int, Page]]:
        try:
            with file.open("rb") as raw:
                stream = bz2.BZ2File(raw) if file.suffix.lower() == ".bz2" else raw
                for page in read_pages(cast(IO[bytes], stream), file.name):
                    now["pages"] = (number := now["pages"] + 1)
                    now["newest"] = max(now["newest"], page.changed_at)
                    if number > before["pages"]:
                        figures["pages"] += 1
                        figures["articles" if page.article else "skipped"] += 1
                        if page.article:
                            yield number, page
                        if refresh.over:
                            return
        except Exception as error:  # of the host, the compression or the XML: what was read stays
            where = f"after page {now['pages']:,}" if now["pages"] else "at its beginning"
            failures.append(failure("unreadable_file", file.name, f"cannot be read {where}: {error}"))
        else:
            now["complete"] = True

    now["pages"] = 0
    for stored in chunks(in_parallel(_rows, articles(), lambda numbered: len(numbered[1].wikitext)), STORED_PAGES):
        collection.store((key, row) for _, key, row in stored)
        collection.note(name, json.dumps({**before, "pages": stored[-1][0]}))
        refresh.log(f"{file.name}: {stored[-1][0]:,} pages read")
    collection.finish(name, failures)
    collection.note(name, json.dumps(now))
    if now["complete"] and collection.noted("since") is None:
        collection.note("since", now["newest"])


def _read_changes(api: str, refresh: Refresh) -> None:
    """Queue the articles that changed since the last refresh, then fetch what waits in the queue.

    An API that gives no usable answer leaves a row that says so, and the queue for the next refresh.
    """
    failures = []
    try:
        with Fetcher(refresh.settings.delay, refresh.settings.contact) as fetcher:
            if not refresh.over:
                _queue_changes(fetcher, api, refresh)
                _fetch_pages(fetcher, api, refresh)
    except Unreachable as error:
        failures = [failure("unreachable", api, f"{error}; the next refresh goes on from here")]
    except MISSHAPEN as error:
        failures = [failure("unreachable", api, f"not what a MediaWiki API answers: {error!r}")]
    refresh.collection.finish(f"api:{api}", failures)


def _queue_changes(fetcher: Fetcher, api: str, refresh: Refresh) -> None:
    collection = refresh.collection
    since = collection.noted("since")
    if since and datetime.fromisoformat(since) < datetime.now(UTC) - LISTED:
        refresh.log(f"{api}: changes since {since} are asked for; Wikimedia's wikis list no more than 30 days of them")
    query = {
        "list": "recentchanges",
        "rcdir": "newer",
        "rcnamespace": 0,
        "rctype": "edit|new",
        "rcprop": "ids|timestamp",
        "rclimit": "max",
        **({"rcstart": since} if since else {}),
    }
    for answer in _answers(fetcher, api, query):
        changes = answer["query"]["recentchanges"]
        changed = []
        for change in changes:
            key = f"page:{change['pageid']}"
            if (collection.info(key) or {}).get("revision", -1) < change["revid"]:
                changed.append(key)
        collection.add((key, {}) for key in changed)
        collection.reopen(changed)
        if changes:
            collection.note("since", changes[-1]["timestamp"])
        if refresh.over:
            return


def _fetch_pages(fetcher: Fetcher, api: str, refresh: Refresh) -> None:
    waiting = [key for key, _ in refresh.collection.waiting() if key.startswith("page:")]
    del waiting[max(0, refresh.settings.max_pages - refresh.figures["pages"]) :]
    if not waiting:
        return
    about = _ask(fetcher, api, {"meta": "siteinfo", "siprop": "general|namespaces|namespacealiases"})["query"]
    site = Site(about["general"]["base"].rpartition("/")[0])
    for namespace in [*about["namespaces"].values(), *about.get("namespacealiases", [])]:
        site.namespaces.setdefault(namespace["id"], set()).add(namespace.get("name") or namespace["alias"])
    names = Names.of(site.namespaces)
    for keys in chunks(waiting, PAGES_A_REQUEST):
        query = {
            "prop": "revisions|info",
            "rvprop": "ids|timestamp|content",
            "rvslots": "main",
            "pageids": "|".join(key.removeprefix("page:") for key in keys),
        }
        found: dict[int, dict[str, Any]] = {}
        for answer in _answers(fetcher, api, query):  # a page's text may come in a later part of the answer
            for page in answer["query"]["pages"]:
                found.setdefault(page["pageid"], {}).update(page)
        for key in keys:
            _finish_page(key, found.get(int(key.removeprefix("page:")), {}), site, names, refresh)
        refresh.log(f"{api}: {refresh.collection.counts()['waiting']:,} changed pages to fetch")
        if refresh.over:
            return


def _finish_page(key: str, found: dict[str, Any], site: Site, names: Names, refresh: Refresh) -> None:
    refresh.figures["pages"] += 1
    if not found.get("revisions"):
        refresh.figures["gone"] += 1  # deleted, or hidden: what was collected of it stays
        refresh.collection.finish(key, [])
        return
    revision = found["revisions"][0]
    main = revision["slots"]["main"]
    page = Page(
        id=key.removeprefix("page:"),
        title=found["title"],
        changed_at=revision["timestamp"],
        article=found["ns"] == 0 and not found.get("redirect") and main.get("contentmodel", "wikitext") == "wikitext",
        wikitext=main.get("content", ""),
        place=f"{site.articles}, page {found['pageid']} ({found['title']})",
        url=_address(site, found["title"]),
        names=names,
    )
    refresh.figures["articles" if page.article else "skipped"] += 1
    refresh.collection.finish(key, [_row(page)] if page.article else [], info={"revision": revision["revid"]})


def _answers(fetcher: Fetcher, api: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All parts of an answer."""
    going_on: dict[str, Any] = {}
    while True:
        answer = _ask(fetcher, api, {**query, **going_on})
        yield answer
        before, going_on = going_on, answer.get("continue", {})
        if not going_on:
            return
        if going_on == before:
            raise Unreachable(f"{api}: the answer goes on with {going_on} for ever")


def _ask(fetcher: Fetcher, api: str, query: dict[str, Any]) -> dict[str, Any]:
    """One answer of the API. `maxlag` asks it to refuse while its databases are behind; it is then asked again."""
    parameters = {"action": "query", "format": "json", "formatversion": 2, "maxlag": 5, **query}
    answer = json.loads(fetcher.get(api, parameters, busy=_is_behind).body)
    if "error" in answer:
        raise Unreachable(f"{api}: {answer['error']['code']}: {answer['error'].get('info')}")
    return dict(answer)


def _is_behind(answer: Answer) -> bool:
    return b'"maxlag"' in answer.body[:200]
