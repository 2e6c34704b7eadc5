"""A site becomes articles, each once, whatever its host does and whenever the refresh is killed."""

import gzip
import itertools
import json
import multiprocessing
import sys
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sources import reading
from khmer_assets.sources import refresh as refresh_payload
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection
from khmer_assets.sources.entries import settings_of
from khmer_assets.sources.kinds import website
from resources.payload import PayloadRun
from tests.sources.hosts import Request, Response, host

HTML = {"Content-Type": "text/html; charset=utf-8"}

# a refresh needs a process of its own, for Twisted's reactor starts once in each; here they share what they import
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["khmer_assets.sources.spider", "trafilatura", "tests.sources.kinds.test_website"])


def source(address: str, **settings: object) -> Source:
    given = {"start": address, "delay": 0, "timeout": 1, "max_seconds": 60, **settings}
    return Source(name="site", kind="website", language="khm", license="unknown", settings=given)


def article(number: int | str, links: str = "", head: str = "") -> bytes:
    paragraphs = "".join(f"<p>អត្ថបទលេខ {number} កថាខណ្ឌទី {n} និយាយអំពីកសិករដែលដាំស្រូវ\u200bនៅរដូវវស្សា។</p>" for n in range(4))
    head = f"<title>អត្ថបទ {number}</title>{head}"
    return f"<html><head>{head}</head><body><article>{paragraphs}</article><nav>{links}</nav></body></html>".encode()


def anchors(addresses: object) -> str:
    return "".join(f'<a href="{address}">បន្ត</a> ' for address in addresses)  # type: ignore[attr-defined]


@dataclass
class Crawled:
    """What a refresh returned, wrote to its error stream and left in the collection."""

    figures: dict
    errors: str
    items: dict[str, dict]
    rows: list[dict]

    @property
    def texts(self) -> dict[str, str]:
        return {row["url"]: row["text"] for row in self.rows if not row.get("rule")}

    @property
    def rules(self) -> dict[str, str]:
        return {row["place"]: row["rule"] for row in self.rows if row.get("rule")}


def refresh(entry: Source, folder: Path) -> None:
    """Refresh as the graph's payload does; leave the figures and what was written to the error stream as files."""
    sys.stderr = (folder / "errors").open("w", buffering=1)
    spec = refresh_payload.Spec(source=entry, base=folder, collection=folder / "site.sqlite")
    figures = refresh_payload.main(spec, PayloadRun(folder / "work"))
    (folder / "figures.json").write_text(json.dumps(figures))


def start(entry: Source, folder: Path) -> multiprocessing.process.BaseProcess:
    (folder / "work").mkdir(exist_ok=True)
    process = PROCESSES.Process(target=refresh, args=(entry, folder), daemon=True)
    process.start()
    return process


def crawl(entry: Source, folder: Path) -> Crawled:
    process = start(entry, folder)
    process.join(120)
    errors = (folder / "errors").read_text()
    assert process.exitcode == 0, errors
    with Collection(folder / "site.sqlite") as collection:
        figures = json.loads((folder / "figures.json").read_text())
        return Crawled(figures, errors, dict(collection.items()), list(collection.rows()))


# Bad hosts: one crawl of a site where everything goes wrong


@dataclass
class BadSite:
    """A site whose pages misbehave, each in its own way; `asked` counts the requests by path."""

    elsewhere: str
    asked: Counter = field(default_factory=Counter)
    closing: threading.Event = field(default_factory=threading.Event)

    def pages(self) -> list[str]:
        return [name.removeprefix("page_") for name in dir(self) if name.startswith("page_")]

    def __call__(self, request: Request) -> Response:
        self.asked[request.path] += 1
        if request.path == "/robots.txt":
            return Response(b"User-agent: *\nDisallow: /secret\nCrawl-delay: 0.01")
        if request.path == "/":
            linked = [page for page in self.pages() if page != "circle_back"]
            strange = ["mailto:a@b.example", "javascript:void(0)", "tel:012", "ftp://h/x", "http://[bad", "#top"]
            strange += [f"{self.elsewhere}/away", "http://127.0.0.1:99999/", "/a.pdf", "/long" + "g" * 3000, "data:,x"]
            return Response(article("ដើម", anchors([*strange, *linked, "good#part"])), headers=HTML)
        if request.path.startswith("/endless_redirect"):
            return Response(status=302, headers={"Location": f"{request.path}x"})
        return getattr(self, f"page_{request.path[1:]}")(request)

    def page_good(self, request: Request) -> Response:
        return Response(article("ល្អ"), headers=HTML)

    def page_english(self, request: Request) -> Response:
        text = "".join(f"<p>Farmers of village {n} plant their rice when the rain comes.</p>" for n in range(5))
        return Response(f"<html><body><article>{text}</article></body></html>".encode(), headers=HTML)

    def page_secret(self, request: Request) -> Response:
        raise AssertionError("robots.txt forbids this page")

    def page_missing(self, request: Request) -> Response:
        return Response(b"<p>not here</p>", 404, HTML)

    def page_broken(self, request: Request) -> Response:
        return Response(article("ខូច"), 500, HTML)

    def page_busy(self, request: Request) -> Response:
        if self.asked["/busy"] == 1:
            return Response(b"", 429, {"Retry-After": "1"})
        return Response(article("រវល់"), headers=HTML)

    def page_always_busy(self, request: Request) -> Response:
        return Response(b"", 429, {"Retry-After": "Mon, 02 Jan 2006 15:04:05 GMT"})

    def page_unmodified(self, request: Request) -> Response:
        return Response(b"", 304)

    def page_moved(self, request: Request) -> Response:
        return Response(status=301, headers={"Location": "good"})

    def page_circle(self, request: Request) -> Response:
        return Response(status=302, headers={"Location": "/circle_back"})

    def page_circle_back(self, request: Request) -> Response:
        return Response(status=302, headers={"Location": "/circle"})

    def page_to_itself(self, request: Request) -> Response:
        return Response(status=301, headers={"Location": "/to_itself"})

    def page_endless_redirect(self, request: Request) -> Response:
        raise AssertionError

    def page_away(self, request: Request) -> Response:
        return Response(status=302, headers={"Location": f"{self.elsewhere}/landing"})

    def page_picture(self, request: Request) -> Response:
        return Response(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40, headers=HTML)

    def page_data(self, request: Request) -> Response:
        return Response(b"{}", headers={"Content-Type": "application/json"})

    def page_latin(self, request: Request) -> Response:
        return Response(article("ឡាតាំង"), headers={"Content-Type": "text/html; charset=iso-8859-1"})

    def page_utf16(self, request: Request) -> Response:
        return Response(article("យូ").decode().encode("utf-16"), headers={"Content-Type": "text/html"})

    def page_not_utf8(self, request: Request) -> Response:
        return Response(article("បែក").replace("ស្រូវ".encode(), b"\xe1\x9e"), headers=HTML)

    def page_empty(self, request: Request) -> Response:
        return Response(b"", headers=HTML)

    def page_deep(self, request: Request) -> Response:
        return Response(b"<div>" * 300_000, headers=HTML)

    def page_many_attributes(self, request: Request) -> Response:
        return Response(b"<p " + b"a=1 " * 500_000 + b">", headers=HTML)

    def page_endless(self, request: Request) -> Response:
        return Response(itertools.repeat(b"<p>" + b"a" * 100_000), headers=HTML)

    def page_dripping(self, request: Request) -> Response:
        return Response((b"a" for _ in iter(lambda: self.closing.wait(0.1), True)), headers=HTML)

    def page_hanging(self, request: Request) -> Response:
        self.closing.wait()
        return Response()

    def page_cut_off(self, request: Request) -> Response:
        return Response(article("ខ្លី"), headers={**HTML, "Content-Length": "100000", "Connection": "close"})

    def page_no_gzip(self, request: Request) -> Response:
        return Response(article("ហ្ស៊ីប"), headers={**HTML, "Content-Encoding": "gzip"})

    def page_broken_gzip(self, request: Request) -> Response:
        packed = gzip.compress(article("ហ្ស៊ីប"))
        return Response(packed[:10] + b"\xff" * 50, headers={**HTML, "Content-Encoding": "gzip"})

    def page_gzip_bomb(self, request: Request) -> Response:
        return Response(gzip.compress(b"a" * 50_000_000, 1), headers={**HTML, "Content-Encoding": "gzip"})


ENDS = {
    "missing": ("http_error", "404 Not Found"),
    "broken": ("http_error", "500 Internal Server Error"),
    "always_busy": ("http_error", "429"),
    "unmodified": ("http_error", "304"),
    "secret": ("robots_forbid", "robots.txt forbids it"),
    "circle_back": ("redirect_loop", "in a circle"),
    "to_itself": ("redirect_loop", "in a circle"),
    "away": ("off_site", "not in the settings"),
    "picture": ("not_html", "no HTML page"),
    "data": ("not_html", "application/json"),
    "not_utf8": ("undecodable", "no characters in utf-8"),
    "empty": ("missing_text", "no article"),
    "deep": ("too_complex", "300,000 tags"),
    "many_attributes": ("too_complex", "words"),
    "endless": ("too_large", "over 5,000,000 bytes"),
    "gzip_bomb": ("too_large", "over 5,000,000 bytes"),
    "dripping": ("unreachable", "longer than 2"),
    "hanging": ("unreachable", "longer than 2"),
    "cut_off": ("unreachable", "ResponseDataLoss"),
    "no_gzip": ("unreadable_page", "decompressed"),
    "broken_gzip": ("unreadable_page", "decompressed"),
}
READ = {"good", "english", "busy", "latin", "utf16"}
FOLLOWED = {"moved", "circle", "endless_redirect"}  # to pages that are items of their own


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    visited: list[str] = []

    def elsewhere(request: Request) -> Response:
        visited.append(request.path)
        return Response(article("ក្រៅ"), headers=HTML)

    with host(elsewhere) as other:
        site = BadSite(other)
        with host(site) as address:
            crawled = crawl(source(f"{address}/", timeout=2), tmp_path_factory.mktemp("bad"))
            site.closing.set()
    return site, address, crawled, visited


@pytest.mark.parametrize("page", ENDS)
def test_what_cannot_be_read_says_why_and_the_crawl_goes_on(bad, page):
    _, address, crawled, _ = bad
    (row,) = [row for row in crawled.rows if row["place"] == f"{address}/{page}"]
    rule, reason = ENDS[page]
    assert row["rule"] == rule
    assert reason in row["reason"]
    assert row["reason"].startswith(f"{address}/{page}: ")


def test_every_page_of_the_bad_site_comes_to_its_end(bad):
    site, address, crawled, _ = bad
    assert set(site.pages()) == READ | set(ENDS) | FOLLOWED
    assert crawled.texts.keys() == {f"{address}/{page}" for page in READ}
    assert crawled.figures["collection_waiting"] == 0
    assert crawled.rules[f"{address}/endless_redirect{'x' * 10}"] == "redirect_loop"
    assert crawled.figures["failed"] == len(ENDS) + 1 == crawled.figures["collection_failures"]
    assert "Traceback" not in crawled.errors


def test_what_is_read_is_whole(bad):
    _, address, crawled, _ = bad
    for page, name in {"good": "ល្អ", "latin": "ឡាតាំង", "utf16": "យូ", "busy": "រវល់"}.items():
        text = crawled.texts[f"{address}/{page}"]
        assert text.count(f"អត្ថបទលេខ {name}") == 4
        assert text.count("\u200b") == 4


def test_no_other_host_strange_link_or_forbidden_page_is_visited(bad):
    site, _, _, visited = bad
    assert visited == []
    endless = {f"/endless_redirect{'x' * n}" for n in range(11)}
    assert set(site.asked) == {"/", "/robots.txt", *endless} | {f"/{page}" for page in set(site.pages()) - {"secret"}}


def test_hosts_are_tried_again_but_not_for_ever(bad):
    site, _, _, _ = bad
    assert {site.asked[path] for path in ("/broken", "/always_busy", "/hanging", "/cut_off")} == {3}
    assert site.asked["/busy"] >= 2
    assert max(site.asked.values()) == 3


def test_a_host_that_is_not_there_is_a_row(tmp_path):
    with host(lambda request: Response()) as gone:
        pass
    crawled = crawl(source(f"{gone}/"), tmp_path)
    assert crawled.rules == {f"{gone}/": "unreachable"}


# Settings of a site


def test_articles_are_found_by_sitemap_feed_and_links(tmp_path):
    when = '<p class="date">៦ ឧសភា ២០២៤</p>'
    labels = '<ul class="path"><li>ទំព័រដើម</li><li class="last">សេដ្ឋ\u200bកិច្ច</li></ul>'
    tagged = "<html><body><div class=d><p>មួយ\u200bពីរ</p><p>បី</p></div><h2>ចំណង</h2>" + when + labels + "</body></html>"

    def site(request: Request) -> Response:
        address = f"http://{request.headers['Host']}"
        index = f"<sitemapindex><sitemap><loc>{address}/s1.xml.gz</loc></sitemap></sitemapindex>"
        listed = f"<urlset><url><loc>{address}/news/1</loc></url><url><loc>{address}/about</loc></url></urlset>"
        items = "".join(f"<item><title>x</title><link>{address}/news/{n}</link></item>" for n in (1, 2))
        match request.path:
            case "/" | "/page/2":
                return Response(
                    article("បញ្ជី", anchors(["/news/3", "/page/2", "/news/4?b=1&a=2", "/ព័ត៌មាន/៧", "/tag/x"])),
                    headers=HTML,
                )
            case "/sitemap.xml":
                return Response(index.encode(), headers={"Content-Type": "text/xml"})
            case "/s1.xml.gz":
                return Response(gzip.compress(listed.encode()), headers={"Content-Type": "application/x-gzip"})
            case "/feed":
                channel = f'<channel xmlns:a="http://www.w3.org/2005/Atom"><a:link href="/news/9"/>{items}</channel>'
                return Response(f"<rss>{channel}</rss>".encode(), headers={"Content-Type": "application/rss+xml"})
            case "/atom":
                entry = f'<entry><link rel="edit" href="/news/8"/><link href="{address}/news/5"/></entry>'
                return Response(f'<feed xmlns="http://www.w3.org/2005/Atom">{entry}</feed>'.encode())
            case "/bad.xml":
                return Response(b"<html>not a sitemap</html>")
            case "/news/1":
                return Response(tagged.encode(), headers=HTML)
            case path if path.startswith(("/news/", "/ព័ត៌មាន/")):
                return Response(article(path), headers=HTML)
        return Response(b"", 404)

    with host(site) as address:
        entry = source(
            f"{address}/",
            sitemap=[f"{address}/sitemap.xml", f"{address}/bad.xml"],
            feed=[f"{address}/feed", f"{address}/atom"],
            articles=["^/news/[0-9]+", "^/ព័ត៌មាន/"],
            follow=["^/page/"],
            selectors={"title": "h2", "text": ".d p", "category": "//li[@class='last']", "published_at": ".date::text"},
        )
        crawled = crawl(entry, tmp_path)
    paths = {"/news/1", "/news/2", "/news/3", "/news/4?b=1&a=2", "/news/5", "/ព័ត៌មាន/៧"}
    assert {unquote(url) for url in crawled.texts} == {f"{address}{path}" for path in paths}
    assert crawled.rules == {f"{address}/bad.xml": "unreadable_page"}
    (row,) = [row for row in crawled.rows if row["url"] == f"{address}/news/1"]
    assert row["text"] == "មួយ\u200bពីរ\nបី"
    assert (row["title"], row["category"], row["published_at"]) == ("ចំណង", "សេដ្ឋកិច្ច", "2024-05-06T00:00:00")


def tree(number: int, last: int, width: int = 3) -> bytes:
    """Page `number` of a site on which page n leads to the pages from width * n + 1 on."""
    below = range(width * number + 1, min(width * number + width, last) + 1)
    return article(number, anchors([f"/{n}" for n in below]))


def numbered(last: int, asked: list[str] | None = None):
    def site(request: Request) -> Response:
        if asked is not None:
            asked.append(request.path)
        if request.path == "/robots.txt":
            return Response(b"", 404)
        return Response(tree(int(request.path[1:] or 0), last), headers=HTML)

    return site


@pytest.mark.parametrize(
    ("limit", "pages"), [({"max_depth": 2}, 1 + 3 + 9), ({"max_pages": 7}, 7), ({"max_depth": 0}, 1)]
)
def test_limits_on_depth_and_pages_hold(tmp_path, limit, pages):
    with host(numbered(100)) as address:
        crawled = crawl(source(f"{address}/", **limit), tmp_path)
    assert len(crawled.items) == pages
    assert len(crawled.rows) == pages - 1  # a start page is read for its links


def test_a_refresh_ends_in_time_and_the_next_goes_on(tmp_path):
    closing = threading.Event()

    def site(request: Request) -> Response:
        if request.path == "/robots.txt":
            return Response(b"", 404)
        if not closing.is_set() and request.path != "/":
            time.sleep(0.2)
        return Response(tree(int(request.path[1:] or 0), 30, width=30), headers=HTML)

    with host(site) as address:
        first = crawl(source(f"{address}/", max_seconds=0.5), tmp_path)
        closing.set()
        second = crawl(source(f"{address}/"), tmp_path)
    assert first.figures["limit_reached"]
    assert not second.figures["limit_reached"]
    assert first.figures["fetched"] + second.figures["fetched"] == 31
    assert Counter(row["url"] for row in second.rows) == Counter(f"{address}/{n}" for n in range(1, 31))


# Refreshes


def test_a_refresh_adds_what_is_new_and_keeps_what_is_gone(tmp_path):
    asked: Counter = Counter()
    texts = {"/1": "មួយ", "/2": "ពីរ", "/3": "បី"}

    def site(request: Request) -> Response:
        if request.path == "/robots.txt":
            return Response(b"", 404)
        if request.path != "/" and request.path not in texts:
            return Response(b"", 410)
        body = article(texts.get(request.path, "ដើម"), anchors(texts if request.path == "/" else []))
        etag = f'"é{zlib.crc32(body)}"'
        old = request.headers.get("If-None-Match") == etag
        asked[request.path, 304 if old else 200] += 1
        return Response(b"" if old else body, 304 if old else 200, {**HTML, "ETag": etag})

    with host(site) as address:
        assert len(crawl(source(f"{address}/"), tmp_path).texts) == 3

        asked.clear()
        texts |= {"/2": "ពីរថ្មី", "/4": "បួន"}
        del texts["/3"]
        second = crawl(source(f"{address}/"), tmp_path)
        assert asked == {("/", 200): 1, ("/1", 304): 1, ("/2", 200): 1, ("/4", 200): 1}
        assert second.figures["unchanged"] == 1
        written = [(row["url"].removeprefix(address), row["text"].split()[1]) for row in second.rows if row["text"]]
        assert sorted(written) == [("/1", "មួយ"), ("/2", "ពីរ"), ("/2", "ពីរថ្មី"), ("/3", "បី"), ("/4", "បួន")]
        assert second.rules == {f"{address}/3": "http_error"}

        asked.clear()
        third = crawl(source(f"{address}/", revisit_articles=False), tmp_path)
        assert asked == {("/", 304): 1}
        assert third.rules == {f"{address}/3": "http_error"}
        assert len(third.rows) == 6

        asked.clear()
        crawl(source(f"{address}/", max_depth=3), tmp_path)  # what was left out before may count now
        assert set(asked) == {(path, 200) for path in ("/", *texts)}


@pytest.mark.parametrize("pages", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_two_kills_leave_every_page_exactly_once(tmp_path, pages):
    asked: list[str] = []
    with host(numbered(pages - 1, asked)) as address:
        for reached in (pages // 4, pages // 2):
            process = start(source(f"{address}/"), tmp_path)
            while len(asked) < reached:
                assert process.is_alive()
                time.sleep(0.005)
            process.kill()
            process.join()
        crawled = crawl(source(f"{address}/"), tmp_path)
    assert 0 < crawled.figures["fetched"] < pages
    assert Counter(row["url"] for row in crawled.rows) == Counter(f"{address}/{n}" for n in range(1, pages))
    assert crawled.figures["collection_waiting"] == crawled.figures["collection_failures"] == 0


# The catalogue


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "example.org"}, "settings.start"),
        ({"start": []}, "settings.start"),
        ({"articles": ["("]}, "settings.articles.0: Input should be a valid regular expression"),
        ({"selectors": {"title": "h1["}}, "settings.selectors.title: neither CSS nor XPath"),
        ({"selectors": {"title": "//h1["}}, "settings.selectors.title: neither CSS nor XPath"),
        ({"delay": -1}, "settings.delay"),
        ({"max_pages": 0}, "settings.max_pages"),
        ({"depth": 3}, "settings.depth: there is no such key"),
    ],
)
def test_wrong_settings_are_refused_with_their_place(tmp_path, settings, message):
    with pytest.raises(RecipeError) as refusal:
        reading.fingerprint(source("http://127.0.0.1/", **settings), tmp_path)
    assert f"source 'site': {message}" in str(refusal.value)


def test_the_fingerprint_is_that_of_the_entry(tmp_path):
    one, other = source("http://127.0.0.1/"), source("http://127.0.0.1/", delay=2)
    assert website.fingerprint(one, tmp_path) == website.fingerprint(one, tmp_path)
    assert website.fingerprint(one, tmp_path) != website.fingerprint(other, tmp_path)


@pytest.fixture(scope="module")
def ready_made():
    catalogue = SAMPLE_RECIPE.parents[1] / "catalogues" / "khmer_news.yaml"
    return Recipe.load(SAMPLE_RECIPE).model_copy(update={"catalogue": catalogue}).sources


def test_the_ready_made_entries_can_be_used(ready_made):
    assert {name.split("_")[0] for name in ready_made} == {"ams", "cambonomist", "camboja", "dap"}
    for entry in ready_made.values():
        assert entry.license == "all rights reserved; see the site"
        assert settings_of(entry, website.WebsiteSettings).delay >= 1


@pytest.mark.parametrize(
    ("name", "path", "is_article"),
    [
        ("ams_economy", "/2025/01/rice/", True),
        ("ams_economy", "/ស្រូវ/", True),
        ("ams_economy", "/category/rice/page/2/", False),
        ("ams_economy", "/page/2/", False),
        ("ams_economy", "/", False),
        ("cambonomist", "/articles/rice/", True),
        ("cambonomist", "/articles/", False),
        ("cambonomist", "/articles/?page=2", False),
        ("camboja_news", "/kh/rice/", True),
        ("camboja_news", "/kh/category/rice/", False),
        ("camboja_news", "/rice/", False),
        ("dap_news", "/sport/2025/09/17/537427/", True),
        ("dap_news", "/sport/page/2/", False),
    ],
)
def test_the_ready_made_entries_tell_articles_from_lists(ready_made, name, path, is_article):
    settings = settings_of(ready_made[name], website.WebsiteSettings)
    assert any(pattern.search(path) for pattern in settings.articles) is is_article
