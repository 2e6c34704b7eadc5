"""Pages of web archives: from files as they are or broken, and from hosts that speak Common Crawl's protocols."""

import gzip
import io
import json
import zlib

import pytest

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.sources import fetching, reading, warc
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection
from khmer_assets.sources.kinds import common_crawl
from khmer_assets.sources.rows import SourceError
from khmer_assets.sources.warc import Broken, Record, read_records
from tests.sources.hosts import Request, Response, host, part

PARAGRAPH = "អ្នកភូមិបានប្រមូលផលស្រូវវស្សាហើយ ហើយឥឡូវកំពុងរៀបចំដីសម្រាប់ដាំបន្លែ។ "


def html(number: int, text: str = PARAGRAPH, head: str = "") -> str:
    article = f"<p>{number} {text * 6}</p>" * 2
    return f"<html><head><title>ទំព័រ {number}</title>{head}</head><body><article>{article}</article></body></html>"


def record(
    number: int, body: bytes, kind: str = "response", status: str = "200 OK", compress: bool = True, **headers: str
) -> bytes:
    lines = {"Content-Type": "text/html; charset=utf-8"} | {k.replace("_", "-"): v for k, v in headers.items()}
    if kind == "response":
        http = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        body = f"HTTP/1.1 {status}\r\n{http}\r\n".encode() + body
    about = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:{number}>\r\nWARC-Date: 2026-01-02T03:04:05Z\r\n"
        f"WARC-Target-URI: https://a.example/{number}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    whole = about.encode() + body + b"\r\n\r\n"
    return gzip.compress(whole, mtime=0) if compress else whole


PAGES = [record(n, html(n).encode()) for n in range(5)]


def source(**settings: object) -> Source:
    return Source(name="c", kind="common_crawl", language="khm", license="various", settings={"delay": 0, **settings})


@pytest.fixture
def refresh(tmp_path):
    """Refreshes the source as the payload does; returns the figures and all rows."""

    def run(**settings: object) -> tuple[dict, list[dict]]:
        with Collection(tmp_path / "c.sqlite") as collection:
            figures = common_crawl.collect(source(**settings), tmp_path, collection, lambda text: None)
            return figures, list(collection.rows())

    return run


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)


# Files


@pytest.mark.parametrize("ending", [".warc.gz", ".warc"])
def test_an_archives_pages_become_documents(tmp_path, refresh, ending):
    records = [record(n, html(n).encode(), compress=ending.endswith("gz")) for n in range(3)]
    request = record(9, b"GET / HTTP/1.1\r\n\r\n", kind="request", compress=ending.endswith("gz"))
    (tmp_path / f"a{ending}").write_bytes(request + b"".join(records))
    figures, rows = refresh(files="*.warc*")
    assert figures["documents"] == len(rows) == 3
    assert rows[1]["text"].startswith("1 អ្នកភូមិ")
    assert (rows[1]["title"], rows[1]["url"]) == ("ទំព័រ 1", "https://a.example/1")
    assert rows[1]["published_at"] == "2026-01-02T03:04:05Z"


def test_text_records_are_taken_as_they_are(tmp_path, refresh):
    texts = [record(n, f"អត្ថបទ\u200bលេខ {n}\n".encode(), kind="conversion") for n in range(2)]
    (tmp_path / "a.warc.wet.gz").write_bytes(record(8, b"software: x", kind="warcinfo") + b"".join(texts))
    _, rows = refresh(files="a.warc.wet.gz")
    assert [row["text"] for row in rows] == ["អត្ថបទ\u200bលេខ 0\n", "អត្ថបទ\u200bលេខ 1\n"]


def test_a_pages_own_date_comes_before_the_crawls(tmp_path, refresh):
    dated = html(1, head='<meta property="article:published_time" content="2025-05-06T07:00:00+07:00"/>')
    (tmp_path / "a.warc.gz").write_bytes(record(1, dated.encode()))
    assert refresh(files="a.warc.gz")[1][0]["published_at"] == "2025-05-06"


def test_records_without_khmer_letters_and_answers_that_are_no_pages_are_counted(tmp_path, refresh):
    others = [
        record(10, html(10, "The villagers brought in the rice and now they plant. ").replace("ទំព័រ", "page").encode()),
        record(11, html(11).encode(), status="404 Not Found"),
        record(12, "អត្ថបទ".encode(), Content_Type="application/json"),
    ]
    (tmp_path / "a.warc.gz").write_bytes(b"".join(others + PAGES))
    figures, rows = refresh(files="a.warc.gz")
    assert len(rows) == 5
    counted = {"records": 8, "other_languages": 1, "no_pages": 2, "documents": 5, "limit_reached": False}
    assert figures == counted


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (html(1).encode(), {"Content_Type": "application/octet-stream"}),
        (html(1).encode(), {"Content_Type": "text/html; charset=iso-8859-1"}),
        (html(1).encode("utf-16"), {"Content_Type": "text/html; charset=utf-16"}),
        (gzip.compress(html(1).encode(), mtime=0), {"Content_Encoding": "gzip"}),
        (html(1).encode(), {"Content_Encoding": "gzip"}),
        (html(1).encode(), {"Content_Encoding": "br"}),
        (b"%x\r\n%s\r\n0\r\n\r\n" % (len(html(1).encode()), html(1).encode()), {"Transfer_Encoding": "chunked"}),
        (html(1).encode(), {"Transfer_Encoding": "chunked"}),
        (html(1).encode("ascii", "xmlcharrefreplace"), {}),
    ],
)
def test_what_the_headers_say_is_not_believed_against_the_bytes(tmp_path, refresh, body, headers):
    (tmp_path / "a.warc.gz").write_bytes(record(1, body, **headers))
    _, rows = refresh(files="a.warc.gz")
    assert rows[0]["text"].startswith("1 អ្នកភូមិ"), rows[0]


@pytest.mark.parametrize(
    ("body", "headers", "rule"),
    [
        (gzip.compress(b"<html>" + b" " * 30_000_000, mtime=0), {"Content_Encoding": "gzip"}, "too_large"),
        (b"<html>\xe1\x9e\x80" + b" " * 11_000_000, {}, "too_large"),
        (gzip.compress(html(1).encode(), mtime=0)[:40] + b"\xff" * 40, {"Content_Encoding": "gzip"}, "undecodable"),
        ("<html><body><script>ក</script></body></html>".encode(), {}, "missing_text"),
    ],
)
def test_a_page_that_cannot_be_used_is_set_aside(tmp_path, refresh, body, headers, rule):
    (tmp_path / "a.warc.gz").write_bytes(record(1, body, **headers) + PAGES[2])
    _, rows = refresh(files="a.warc.gz")
    assert [row.get("rule") for row in rows] == [rule, None]
    assert rows[0]["reason"].startswith("a.warc.gz, offset 0 (https://a.example/1): ")


def damaged(number: int) -> list[bytes]:
    pages = list(PAGES)
    content = bytearray(pages[number])
    content[100:140] = b"\xff" * 40
    pages[number] = bytes(content)
    return pages


OFFSETS = [sum(map(len, PAGES[:number])) for number in range(6)]
REQUEST = record(9, b"GET / HTTP/1.1\r\n\r\n", kind="request")
BREAKS = {
    "a broken member": (b"".join(damaged(2)), [0, 1, 3, 4], [OFFSETS[1]]),
    "two broken members": (b"".join([*damaged(1)[:3], *damaged(3)[3:]]), [0, 2, 4], [OFFSETS[0], OFFSETS[2]]),
    "a broken first member": (b"".join(damaged(0)), [1, 2, 3, 4], [0]),
    "a broken member between others": (PAGES[0] + REQUEST + damaged(1)[1] + REQUEST + PAGES[2], [0, 2], [0]),
    "bytes that are no member": (PAGES[0] + b"garbage" * 9 + PAGES[1], [0, 1], [0]),
    "a member that is no record": (PAGES[0] + gzip.compress(b"nonsense\n" * 30, mtime=0) + PAGES[1], [0, 1], [0]),
    "cut off in a body": (b"".join(PAGES)[:-40], [0, 1, 2, 3], [OFFSETS[4]]),
    "cut off in a header": (b"".join(PAGES)[: OFFSETS[4] + 40], [0, 1, 2, 3], [OFFSETS[3]]),
    "no archive at all": (b"this is no archive", [], [0]),
}


@pytest.mark.parametrize("case", BREAKS)
def test_a_broken_archive_loses_only_what_is_broken_and_says_where(case):
    content, whole, broken = BREAKS[case]
    found = list(read_records(io.BytesIO(content)))
    assert [int(r.url.rpartition("/")[2]) for r in found if isinstance(r, Record)] == whole
    assert [r.offset for r in found if isinstance(r, Broken)] == broken


def test_an_archive_of_nothing_but_broken_members_ends(monkeypatch):
    monkeypatch.setattr(warc, "MAX_BROKEN", 20)
    found = list(read_records(io.BytesIO(b"\x1f\x8b\x08\0\0\0\0\0\0\0\xff\xff" * 1_000)))
    assert len(found) == 2
    assert "the rest is left" in found[-1].reason


def test_a_record_that_says_it_is_larger_than_it_is_takes_no_memory():
    lying = zlib.compressobj(wbits=31)
    head = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Length: 99999999999\r\n\r\n"
    content = lying.compress(head + b"\0" * 40_000_000) + lying.flush()
    (found,) = read_records(io.BytesIO(content))
    assert len(found.block) == warc.MAX_PAGE_BYTES + 1


def test_a_broken_file_is_recorded_and_mended_when_it_is_put_in_order(tmp_path, refresh):
    (tmp_path / "a.warc.gz").write_bytes(b"".join([*damaged(1)[:3], *damaged(3)[3:]]))
    (tmp_path / "b.warc.gz").write_bytes(record(20, html(20).encode()))
    _, rows = refresh(files="*.warc.gz")
    broken = [row for row in rows if row.get("rule")]
    assert [row["rule"] for row in broken] == ["unreadable_file"] * 2
    assert broken[0]["reason"].startswith("a.warc.gz, offset 0: what follows cannot be read")
    assert len(rows) == 6
    assert refresh(files="*.warc.gz")[0]["records"] == 0
    (tmp_path / "a.warc.gz").write_bytes(b"".join(PAGES))
    _, rows = refresh(files="*.warc.gz")
    assert len(rows) == 6
    assert not [row for row in rows if row.get("rule")]


def test_limits_end_a_refresh_and_the_next_goes_on(tmp_path, refresh):
    (tmp_path / "a.warc.gz").write_bytes(b"".join(PAGES))
    figures, rows = refresh(files="a.warc.gz", max_records=2)
    assert (len(rows), figures["limit_reached"]) == (2, True)
    refresh(files="a.warc.gz", max_records=4)
    _, rows = refresh(files="a.warc.gz", max_records=4)
    assert len(rows) == 5


def test_an_archive_far_away_is_read(refresh):
    content = b"".join(PAGES)
    with host(lambda request: part(content, request)) as address:
        assert len(refresh(files=f"{address}/a.warc.gz")[1]) == 5


# The index


class Crawl:
    """An index of two pages and the host of its archive, which holds the five pages one after the other."""

    def __init__(self) -> None:
        self.archive = b"".join(PAGES)
        self.asked: list[Request] = []
        self.refusals: dict[str, list[Response]] = {}  # by the beginning of the path
        self.captures = [
            {
                "url": f"https://a.example/{n}",
                "filename": "crawl-data/x/warc/a.warc.gz",
                "offset": str(OFFSETS[n]),
                "length": str(len(PAGES[n])),
                "digest": f"D{n}",
                "languages": "khm,eng",
            }
            for n in range(5)
        ]

    def __call__(self, request: Request) -> Response:
        self.asked.append(request)
        for beginning, refusals in self.refusals.items():
            if request.path.startswith(beginning) and refusals:
                return refusals.pop(0)
        if not request.path.endswith("-index"):
            return part(self.archive, request)
        if "showNumPages" in request.query:
            return Response(b'{"pages": 2, "pageSize": 5, "blocks": 6}')
        captures = self.captures[:3] if request.query["page"] == "0" else self.captures[3:]
        return Response(b"".join(json.dumps(c).encode() + b"\n" for c in captures))


@pytest.fixture
def crawl():
    crawl = Crawl()
    with host(crawl) as address:
        yield crawl, {"index": f"{address}/CC-MAIN-2026-01-index", "data": f"{address}/"}


def test_what_the_index_names_is_fetched_by_its_range(crawl, refresh):
    crawl, settings = crawl
    figures, rows = refresh(**settings, contact="corpus@example.org")
    assert figures["documents"] == len(rows) == 5
    assert rows[4]["url"] == "https://a.example/4"
    first = crawl.asked[0].query
    assert (first["url"], first["output"], first["filter"]) == ("*.kh", "json", "=status:200")
    assert all("corpus@example.org" in request.headers["User-Agent"] for request in crawl.asked)
    ranged = [request for request in crawl.asked if request.path.endswith(".gz")]
    assert ranged[1].headers["Range"] == f"bytes={OFFSETS[1]}-{OFFSETS[2] - 1}"
    crawl.asked.clear()
    assert refresh(**settings)[0]["records"] == 0
    assert not crawl.asked


def test_the_index_is_asked_for_the_entrys_language(crawl, refresh, monkeypatch):
    crawl, settings = crawl
    asked = []
    monkeypatch.setattr(
        fetching.Fetcher,
        "_try",
        lambda self, url, parameters, *_: asked.append(parameters) or fetching.Answer(404, {}, b""),
    )
    refresh(**settings, urls=["example.kh/*"])
    assert asked[0] == {
        "url": "example.kh/*",
        "output": "json",
        "filter": ["=status:200", "~languages:.*khm.*"],
        "showNumPages": "true",
    }


def test_a_kill_in_the_middle_loses_one_request(crawl, refresh, monkeypatch):
    crawl, settings = crawl
    fetch, done = common_crawl._fetch_record, []

    def killed(*arguments: object) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(fetch(*arguments))

    monkeypatch.setattr(common_crawl, "_fetch_record", killed)
    with pytest.raises(KeyboardInterrupt):
        refresh(**settings)
    monkeypatch.setattr(common_crawl, "_fetch_record", fetch)
    crawl.asked.clear()
    figures, rows = refresh(**settings)
    assert figures["records"] == len(crawl.asked) == 3
    assert sorted(row["url"] for row in rows) == [f"https://a.example/{n}" for n in range(5)]


@pytest.mark.parametrize(
    ("path", "refusal", "rule", "documents"),
    [
        ("/crawl-data", Response(b"x" * 9_000, 200), "unreachable", 4),  # the range is ignored
        ("/crawl-data", Response(status=404), "unreachable", 4),
        ("/crawl-data", Response(b"no gzip", 206), "unreadable_file", 4),
        ("/crawl-data", Response(PAGES[0][:100], 206), "unreadable_file", 4),
        ("/crawl-data", Response(b"x" * 9_000, 206), "unreachable", 4),  # more than was asked for
        ("/CC", Response(status=403), "unreachable", 0),
        ("/CC", Response(b"<html>"), "unreachable", 0),
    ],
)
def test_an_answer_that_cannot_be_used_is_recorded_and_the_refresh_goes_on(
    crawl, refresh, path, refusal, rule, documents
):
    crawl, settings = crawl
    crawl.refusals[path] = [refusal]
    figures, rows = refresh(**settings)
    assert figures["documents"] == documents
    assert [row["rule"] for row in rows if row.get("rule")] == [rule]


def test_a_host_that_is_down_is_left_alone_and_asked_again_by_the_next_refresh(crawl, refresh):
    crawl, settings = crawl
    crawl.refusals["/crawl-data"] = [Response(status=503, headers={"Retry-After": "0"})] * 25
    figures, rows = refresh(**settings)
    assert figures["documents"] == 0
    assert {row["rule"] for row in rows} == {"unreachable"}
    figures, rows = refresh(**settings)
    assert figures["documents"] == len(rows) == 5


def test_lines_of_the_index_that_are_no_captures_are_set_aside(crawl, refresh):
    crawl, settings = crawl
    crawl.captures[0] = {"filename": "a", "offset": "-1", "length": "x"}
    crawl.captures[1] = ["nothing"]
    crawl.captures[2] |= {"length": "99999999"}
    _, rows = refresh(**settings)
    assert sorted(row["rule"] for row in rows if row.get("rule")) == ["malformed_row", "malformed_row", "too_large"]
    assert len(rows) == 5


def test_an_index_without_captures_gives_nothing(crawl, refresh):
    crawl, settings = crawl
    crawl.captures = []
    assert refresh(**settings)[1] == []


# The entry


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"files": "a", "index": "https://a"},
        {"index": "a"},
        {"files": []},
        {"files": "a", "delay": -1},
        {"warc": "a"},
    ],
)
def test_wrong_settings_are_an_error_in_the_recipe(tmp_path, refresh, wrong):
    with pytest.raises(RecipeError, match="source 'c': settings"):
        refresh(**wrong)
    with pytest.raises(RecipeError, match="source 'c': settings"):
        reading.fingerprint(source(**wrong), tmp_path)


def test_files_that_are_not_there_are_an_error(refresh):
    with pytest.raises(SourceError, match=r"nothing is at .*a\.warc\.gz; put the files there, or correct 'files'"):
        refresh(files="a.warc.gz")


def test_the_fingerprint_changes_with_the_files_and_with_the_entry(tmp_path):
    (tmp_path / "a.warc.gz").write_bytes(PAGES[0])
    first = reading.fingerprint(source(files="a.warc.gz"), tmp_path)
    assert reading.fingerprint(source(files="a.warc.gz"), tmp_path) == first
    assert reading.fingerprint(source(files="a.warc.gz", max_records=1), tmp_path) != first
    (tmp_path / "a.warc.gz").write_bytes(PAGES[1])
    assert reading.fingerprint(source(files="a.warc.gz"), tmp_path) != first
