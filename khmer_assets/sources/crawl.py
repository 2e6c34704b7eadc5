"""One refresh of a website, apart from the fetching: what is to be fetched next, and what an answer means.

A page is an item of the collection under its canonical address. Its info says where to fetch it (`url`), what it is
(`part`: start, sitemap, feed or page), how many links and redirects led there (`depth`, `redirects`) and, once it was
read, what its host recognizes it by (`etag`, `modified`), under which settings that was (`scope`), whether it is an
`article`, and the page that it `moved` to. A response, its links and its end are stored in one transaction.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import scrapy
from scrapy.exceptions import DownloadCancelledError, IgnoreRequest
from scrapy.http import HtmlResponse, Response
from scrapy.linkextractors import IGNORED_EXTENSIONS, LinkExtractor
from scrapy.utils.gz import gunzip, gzip_magic_number
from scrapy.utils.python import binary_is_text
from scrapy.utils.response import response_status_message
from scrapy.utils.sitemap import Sitemap
from scrapy.utils.url import url_has_any_extension
from w3lib.url import canonicalize_url, safe_url_string

from khmer_assets.foundation.settings import digest_of
from khmer_assets.sources.collection import Collection, Item
from khmer_assets.sources.html_pages import extract, too_complex
from khmer_assets.sources.rows import TEXT_OF_REMOVED, Row, failure
from khmer_assets.sources.site import MAX_ADDRESS, WebsiteSettings, select

MAX_PAGE_BYTES = 5_000_000
MAX_SITEMAP_BYTES = 50_000_000  # as the sitemap protocol allows
MAX_REDIRECTS = 10
AT_ONCE = 8  # requests on their way; with a delay they queue for their host
PROGRESS_EVERY = 5.0  # seconds
Info = dict[str, Any]
Outcome = tuple[list[Row], list[Item], Info]  # rows, items found, and what to remember of the page


class Refresh:
    """One refresh; `collection` decides what is fetched and remembers it."""

    def __init__(self, settings: WebsiteSettings, collection: Collection, log: Callable[[str], None]):
        self.settings = settings
        self.collection = collection
        self.figures = Counter(fetched=0, unchanged=0, failed=0)
        self.broken: Exception | None = None
        self.ends = time.monotonic() + settings.max_seconds
        self._log = log
        self._logged = time.monotonic()
        self._on_their_way: set[str] = set()
        counts = collection.counts()
        self._known = counts["waiting"] + counts["done"]
        self._hosts = {host_of(url) for url in settings.named}
        self._links = LinkExtractor(deny_extensions=[])
        self._ignored = {f".{extension}" for extension in IGNORED_EXTENSIONS}
        decides = {"articles", "follow", "selectors", "max_pages", "max_depth"}
        self._scope = digest_of(settings.model_dump(mode="json", include=decides))[:16]

    def next_items(self) -> Iterator[tuple[str, Info, dict[str, bytes]]]:
        """Key, info and headers of what may be fetched now."""
        for key, info in self.collection.waiting(limit=2 * AT_ONCE):
            if len(self._on_their_way) >= AT_ONCE:
                return
            if key not in self._on_their_way:
                self._on_their_way.add(key)
                conditional = {"If-None-Match": info.get("etag"), "If-Modified-Since": info.get("modified")}
                known = info.get("scope") == self._scope  # else its links and text are to be read anew
                yield (
                    key,
                    info,
                    {name: value.encode("latin-1") for name, value in conditional.items() if known and value},
                )

    def answered(self, key: str, info: Info, response: Response) -> None:
        """Store what a response gave."""
        try:
            outcome = self._read(key, info, response)
        except Exception as error:  # whatever the libraries raise on what hosts send
            outcome = self._set_aside("unreadable_page", info, f"cannot be read: {error!r:.200}")
        self._finish(key, *outcome)

    def failed(self, key: str, info: Info, error: BaseException) -> None:
        """Store why there was no response."""
        name = type(error).__name__
        match error:
            case IgnoreRequest() if "robots.txt" in str(error):
                rule, reason = "robots_forbid", "the host's robots.txt forbids it"
            case IgnoreRequest() | DownloadCancelledError():
                rule, reason = "too_large", f"over {MAX_PAGE_BYTES:,} bytes, more than a page may have"
            case _ if name.startswith(("Download", "CannotResolve", "ResponseData", "Connect", "Timeout")):
                rule, reason = "unreachable", f"{name}: {error}"
            case _:
                rule, reason = "unreadable_page", f"cannot be decompressed: {error!r:.200}"
        self._finish(key, *self._set_aside(rule, info, reason))

    def _finish(self, key: str, rows: list[Row], found: list[Item], info: Info) -> None:
        self.collection.finish(key, rows, info, found)
        self._on_their_way.discard(key)
        self._known += len(found)
        self.figures["fetched"] += 1
        self.figures["failed"] += any(row.get("rule") for row in rows)
        if time.monotonic() - self._logged > PROGRESS_EVERY:
            self._logged = time.monotonic()
            waiting = self.collection.counts()["waiting"]
            self._log(f"{self.figures['fetched']:,} pages fetched, {waiting:,} wait, {self.figures['failed']:,} failed")

    def _read(self, key: str, info: Info, response: Response) -> Outcome:
        if response.status == 304 and "scope" in info:
            self.figures["unchanged"] += 1
            return [], [], info
        if response.status in (301, 302, 303, 307, 308) and "Location" in response.headers:
            return self._moved(key, info, response)
        if not 200 <= response.status < 300:
            return self._set_aside("http_error", info, f"the host answered {response_status_message(response.status)}")
        if info["part"] in ("sitemap", "feed"):
            return [], self._listed(info, response), self._remembered(info, response)
        if not isinstance(response, HtmlResponse) or not binary_is_text(response.text[:5000].encode()):
            given = (response.headers.get("Content-Type") or b"no content type").decode("latin-1")
            return self._set_aside("not_html", info, f"no HTML page, but {given}")
        return self._page(info, response)

    def _page(self, info: Info, response: HtmlResponse) -> Outcome:
        try:
            response.body.decode()
            response, whole = response.replace(encoding="utf-8"), True  # the bytes know better than the host
        except UnicodeDecodeError:
            whole = False
        if reason := too_complex(response.text):
            return self._set_aside("too_complex", info, reason, response.text[:TEXT_OF_REMOVED])
        found = []
        if info["depth"] < self.settings.max_depth:
            links = (link.url for link in self._links.extract_links(response))
            found = self._new(links, {"part": "page", "depth": info["depth"] + 1})
        if not self._is_article(info):
            return [], found, self._remembered(info, response)
        row = self._article(info["url"], response)
        if row.get("rule"):
            return [row], found, _place(info)
        if not whole and "\ufffd" in (row["text"] or ""):
            reason = f"holds bytes that are no characters in {response.encoding}, its encoding"
            return [failure("undecodable", info["url"], reason, row["text"] or "")], found, _place(info)
        return [row], found, {**self._remembered(info, response), "article": True}

    def _article(self, url: str, response: HtmlResponse) -> Row:
        """The row of a page: what the selectors find, and for the rest what extraction does."""
        row = extract(response.text, url, url)
        selectors = {name: selector for name, selector in self.settings.selectors if selector}
        found = {name: select(response.selector, selector) for name, selector in selectors.items()}
        texts = found.pop("text", [])
        if texts:
            kept = {name: value for name, value in row.items() if name not in ("rule", "reason")}
            row = {**kept, "url": url, "text": "\n".join(texts)}
        if row.get("rule") is None:
            row |= {name: values[0].replace("\u200b", "") for name, values in found.items() if values}
            if found.get("published_at"):
                row["published_at"] = _iso_date(found["published_at"][0])
        return row

    def _listed(self, info: Info, response: Response) -> list[Item]:
        """The pages, and the further sitemaps, that a sitemap or feed lists."""
        body = gunzip(response.body, max_size=MAX_SITEMAP_BYTES) if gzip_magic_number(response) else response.body
        one_deeper: Info = {"part": "page", "depth": info["depth"] + 1}
        if one_deeper["depth"] > self.settings.max_depth:
            return []
        if info["part"] == "sitemap":
            sitemap = Sitemap(body)
            if sitemap.type == "sitemapindex":
                one_deeper = {"part": "sitemap", "depth": info["depth"]}
            elif sitemap.type != "urlset":
                raise ValueError(f"expected a sitemap, found <{sitemap.type}>")
            return self._new((entry["loc"] for entry in sitemap), one_deeper)
        feed = scrapy.Selector(text=body.decode("utf-8", "replace").lstrip("\ufeff"), type="xml")
        feed.remove_namespaces()
        if feed.root.tag.lower() not in ("rss", "rdf", "feed"):
            raise ValueError(f"expected an RSS or Atom feed, found <{feed.root.tag}>")
        links = feed.xpath("//item/link/text() | //entry/link[not(@rel) or @rel='alternate']/@href").getall()
        return self._new((urljoin(info["url"], link.strip()) for link in links), one_deeper)

    def _moved(self, key: str, info: Info, response: Response) -> Outcome:
        """The page that a redirect leads to, as an item of its own; so one that many redirects lead to comes once."""
        location = (response.headers["Location"] or b"").decode("utf-8", "replace")
        target = safe_url_string(urljoin(response.url, location))
        target_key = canonicalize_url(target)
        redirects = info.get("redirects", 0) + 1
        passed, step = {key}, target_key
        while step not in passed and len(passed) <= MAX_REDIRECTS:
            passed.add(step)
            step = (self.collection.info(step) or {}).get("moved", step)
        if step == key or redirects > MAX_REDIRECTS:
            how = "in a circle" if step == key else f"more than {MAX_REDIRECTS} times"
            rows, found, _ = self._set_aside("redirect_loop", info, f"redirects {how}, here to {target:.200}")
            return rows, found, {**_place(info), "moved": target_key}
        if host_of(target) not in self._hosts:
            return self._set_aside(
                "off_site", info, f"redirects to {target:.200}, on a host that is not in the settings"
            )
        about = {"part": info["part"], "depth": info["depth"], "redirects": redirects}
        return [], self._new([target], about), {**_place(info), "moved": target_key}

    def _new(self, addresses: Iterable[str], about: Info) -> list[Item]:
        """The addresses that are to be fetched and not known yet, as items, within the number of pages allowed."""
        found: dict[str, Info] = {}
        for address in addresses:
            if self._known + len(found) >= self.settings.max_pages:
                break
            if self._is_wanted(address, about["part"]):
                key = canonicalize_url(address)
                if key not in found and self.collection.info(key) is None:
                    found[key] = {"url": address, **about}
        return list(found.items())

    def _is_wanted(self, url: str, part: str) -> bool:
        if len(url) > MAX_ADDRESS or host_of(url) not in self._hosts:
            return False
        if part != "page":
            return True
        patterns = [*self.settings.articles, *self.settings.follow] if self.settings.articles else []
        wanted = not patterns or any(pattern.search(_path(url)) for pattern in patterns)
        return wanted and not url_has_any_extension(url, self._ignored)

    def _is_article(self, info: Info) -> bool:
        if self.settings.articles:
            return any(pattern.search(_path(info["url"])) for pattern in self.settings.articles)
        return info["part"] == "page"

    def _remembered(self, info: Info, response: Response) -> Info:
        """What the next refresh is to know of a page that was read to the end."""
        given = {"etag": response.headers.get("ETag"), "modified": response.headers.get("Last-Modified")}
        validators = {name: value.decode("latin-1") for name, value in given.items() if value}
        return {**_place(info), "scope": self._scope, **validators}

    def _set_aside(self, rule: str, info: Info, reason: str, text: str = "") -> Outcome:
        # without what its host recognizes it by: the next refresh asks for it as if for the first time
        return [failure(rule, info["url"], reason, text) | {"url": info["url"]}], [], _place(info)


def _place(info: Info) -> Info:
    return {name: info[name] for name in ("url", "part", "depth", "redirects") if name in info}


def host_of(url: str) -> str | None:
    """The host and port of a web address, without `www.`; None where it is no such address."""
    try:
        parts = urlsplit(url)
        assert parts.port is None or parts.port > 0  # raises for a port that is no number
    except (ValueError, AssertionError):
        return None
    return parts.netloc.lower().removeprefix("www.") if parts.scheme in ("http", "https") else None


def _path(url: str) -> str:
    """The path with the query, in the letters that people read."""
    parts = urlsplit(url)
    return unquote(parts.path + (f"?{parts.query}" if parts.query else ""))


def _iso_date(value: str) -> str | None:
    """A date that a page gives in any usual form as ISO 8601, or None."""
    import dateparser

    try:
        return datetime.fromisoformat(value).isoformat()
    except ValueError:
        found = dateparser.parse(value, languages=["km", "en", "fr"], settings={"PARSERS": ["absolute-time"]})
        return found.isoformat() if found else None
