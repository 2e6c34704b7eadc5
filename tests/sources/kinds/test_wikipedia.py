"""A wiki's dump and its changes become articles: markup gone, each page once, and nothing lost where a file breaks."""

import bz2
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.sources import fetching, reading
from khmer_assets.sources import wikitext as wikitext_module
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection
from khmer_assets.sources.kinds import wikipedia
from khmer_assets.sources.rows import SourceError
from khmer_assets.sources.wikitext import MarkupError, Names, plain_text
from tests.sources.hosts import Request, Response, host, part

NAMES = Names.of({6: {"ឯកសារ"}, 14: {"ចំណាត់ថ្នាក់ក្រុម"}})
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="km">
<siteinfo><sitename>វិគី</sitename><dbname>kmwiki</dbname><base>https://km.example/wiki/ទំព័រដើម</base>
<namespaces><namespace key="0" case="first-letter"/><namespace key="6">ឯកសារ</namespace>
<namespace key="14">ចំណាត់ថ្នាក់ក្រុម</namespace></namespaces></siteinfo>
"""


def page(number: int, title: str, text: str, namespace: int = 0, redirect: bool = False) -> str:
    return f"""<page><title>{escape(title)}</title><ns>{namespace}</ns><id>{number}</id>
{'<redirect title="x"/>' if redirect else ""}<revision><id>{number * 10}</id>
<timestamp>2026-01-{number % 28 + 1:02}T00:00:00Z</timestamp><model>wikitext</model><format>text/x-wiki</format>
<text bytes="{len(text)}" xml:space="preserve">{escape(text)}</text></revision></page>
"""


def dump(*pages: str) -> bytes:
    return (HEAD + "".join(pages) + "</mediawiki>").encode()


ARTICLES = [page(n, f"ស្រុកទី {n}", f"'''ស្រុក''' លេខ {n} មាន[[ទន្លេ|ស្ទឹង]]មួយ។ [[ចំណាត់ថ្នាក់ក្រុម:ស្រុក]]") for n in range(1, 7)]


def source(**settings: object) -> Source:
    return Source(name="w", kind="wikipedia", language="khm", license="CC-BY-SA-4.0", settings={"delay": 0, **settings})


@pytest.fixture
def refresh(tmp_path):
    """Refreshes the source as the payload does; returns the figures and all rows."""

    def run(**settings: object) -> tuple[dict, list[dict]]:
        with Collection(tmp_path / "w.sqlite") as collection:
            figures = wikipedia.collect(source(**settings), tmp_path, collection, lambda text: None)
            return figures, list(collection.rows())

    return run


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "FIRST_PAUSE", 0.001)


# Markup


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("'''ដិត''' និង ''ទ្រេត''", "ដិត និង ទ្រេត"),
        ("ទៅ[[ភ្នំពេញ|រាជធានី]]និង[[តាកែវ]]", "ទៅរាជធានីនិងតាកែវ"),
        ("មុន{{ប្រអប់|ក={{ខ|គ}}|[[ឃ]]}}ក្រោយ", "មុនក្រោយ"),
        ("ឈ្មោះ ({{lang|en|Name}}) នេះ", "ឈ្មោះ នេះ"),
        ("មុន<ref name=a>{{cite|x}}</ref>កណ្តាល<ref name=a/>ក្រោយ", "មុនកណ្តាលក្រោយ"),
        ("មុន\n{| class=x\n! ក\n|-\n| ខ || គ\n|}\nក្រោយ", "មុន\n\nក្រោយ"),
        ("[[File:a.jpg|thumb|ពាក្យ [[ក]]]]អក្សរ[[ឯកសារ:b.png]]", "អក្សរ"),
        ("<gallery>\na.jpg|ក\n</gallery>អក្សរ", "អក្សរ"),
        ("អក្សរ[[en:Letter]][[ចំណាត់ថ្នាក់ក្រុម:ក]]", "អក្សរ"),
        ("[[:en:Letter|ពាក្យ]]", "ពាក្យ"),
        ("* មួយ\n* ពីរ\n# បី", "មួយ\nពីរ\nបី"),
        ("មើល [http://a.example ទំព័រ] នេះ", "មើល ទំព័រ នេះ"),
        ("ក&nbsp;&amp; ខ<!-- លាក់ -->", "ក & ខ"),
        ("__NOTOC__ក<br/>ខ", "ក\nខ"),
        ("<nowiki>{{ក}}</nowiki>", "{{ក}}"),
        ("== ក ==\nអក្សរ\n== ទទេ ==\n=== ខ ===\n{{reflist}}\n== ឯកសារយោង ==\n", "ក\nអក្សរ"),
        ("== ក ==\n=== ខ ===\nអក្សរ", "ក\nខ\nអក្សរ"),
        ("ពាក្យ\u200bខណ្ឌ", "ពាក្យ\u200bខណ្ឌ"),
    ],
)
def test_markup_leaves_what_a_reader_sees(wikitext, text):
    assert plain_text(wikitext, NAMES)[0] == text


def test_the_first_category_is_the_articles():
    assert plain_text("ក [[ចំណាត់ថ្នាក់ក្រុម:ខេត្ត|x]] [[Category:B]]", NAMES)[1] == "ខេត្ត"


@given(
    st.lists(
        st.sampled_from(["{{", "}}", "{|", "|}", "[[", "]]", "|", "<ref>", "</ref>", "''", "\n", "=", "ក", "<!--"])
    )
)
@settings(max_examples=150)
def test_no_markup_breaks_the_reading(pieces):
    plain_text("".join(pieces), NAMES)


PIECES = ["ក", " ", "\n", "\n\n", "[[ក]]", "[[ក|ខ]]", "{{ក}}", "{{ក|ខ={{គ}}}}", " '''ក''' ", "<ref>ក</ref>",
          "<ref name=a/>", "<!--ក-->", "\n== ក ==\n", "\n* ក", "[[File:a.jpg|thumb|[[ក]] ខ]]", "[http://a.example ក]",
          "&amp;", "<b>[[ក|ខ]]</b>", "<ref>{{ក|[[ខ]]}}</ref>", "\n{|\n| [[ក]] || {{ខ}}\n|}\n",
          "<nowiki>{{ក}}</nowiki>"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES)).map("".join))
@settings(max_examples=200)
def test_what_is_removed_before_the_parser_changes_nothing(wikitext):
    fast = plain_text(wikitext, NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wikitext_module, "_without_simple_markup", lambda text: text)
        assert plain_text(wikitext, NAMES) == fast


@pytest.mark.parametrize("piece", ["{{a|", "[[", "<ref name='a", "[http://a "])
def test_markup_that_would_take_the_parser_hours_is_refused(piece):
    with pytest.raises(MarkupError, match="left open, more than"):
        plain_text(piece * 50_000, NAMES)


# The dump


@pytest.mark.parametrize("members", [0, 1, 3])
def test_a_dump_is_read_plain_compressed_and_in_many_members(tmp_path, refresh, members):
    content = dump(*ARTICLES)
    size = len(content) // (members or 1) + 1
    name = "a.xml.bz2" if members else "a.xml"
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    (tmp_path / name).write_bytes(b"".join(map(bz2.compress, parts)) if members else content)
    figures, rows = refresh(dump="a.xml*")
    assert figures["articles"] == len(rows) == 6
    assert rows[1]["text"] == "ស្រុក លេខ 2 មានស្ទឹងមួយ។"
    assert rows[1]["title"] == "ស្រុកទី 2"
    assert rows[1]["url"].startswith("https://km.example/wiki/%E1%9E%9F")
    assert rows[1]["published_at"] == "2026-01-03T00:00:00Z"
    assert rows[1]["category"] == "ស្រុក"


def test_only_articles_are_rows(tmp_path, refresh):
    other = page(7, "ពិភាក្សា:ក", "ក", namespace=1), page(8, "ខ", "#REDIRECT [[គ]]", redirect=True)
    (tmp_path / "a.xml").write_bytes(dump(*ARTICLES, *other))
    figures, rows = refresh(dump="a.xml")
    assert (figures["pages"], figures["articles"], figures["skipped"]) == (8, 6, 2)
    assert len(rows) == 6


def test_a_dump_that_was_read_is_not_read_again_and_a_new_one_adds_what_changed(tmp_path, refresh):
    (tmp_path / "a.xml").write_bytes(dump(*ARTICLES))
    refresh(dump="a.xml")
    assert refresh(dump="a.xml")[0]["pages"] == 0
    (tmp_path / "a.xml").write_bytes(dump(*ARTICLES[1:], page(1, "ស្រុកទី 1", "អត្ថបទថ្មី"), page(9, "ថ្មី", "ទំព័រថ្មី")))
    _, rows = refresh(dump="a.xml")
    assert [row["text"] for row in rows[6:]] == ["អត្ថបទថ្មី", "ទំព័រថ្មី"]
    assert len(rows) == 8


BREAKS = {
    "truncated.xml": lambda content: content[: len(content) * 2 // 3],
    "malformed.xml": lambda content: content.replace(b"<id>5</id>", b"<id>5</wrong>"),
    "truncated.xml.bz2": lambda content: bz2.compress(content[:2000]) + bz2.compress(content[2000:])[:-30],
    "broken.xml.bz2": lambda content: bz2.compress(content[:2400]) + b"no member" + bz2.compress(content[2400:]),
    "entities.xml": lambda content: b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + content[:-12] + b"&b;</x>",
}


@pytest.mark.parametrize("name", BREAKS)
def test_where_a_dump_breaks_off_the_pages_before_stay_and_the_next_file_is_read(tmp_path, refresh, name):
    (tmp_path / name).write_bytes(BREAKS[name](dump(*ARTICLES)))
    (tmp_path / "z.xml").write_bytes(dump(page(20, "ក", "ឯកសារទីពីរ")))
    _, rows = refresh(dump=[name, "z.xml"])
    broken = [row for row in rows if row.get("rule")]
    assert [row["rule"] for row in broken] == ["unreadable_file"]
    assert broken[0]["reason"].startswith(f"{name}: cannot be read after page")
    assert len(rows) > 3
    assert rows[-1]["text"] == "ឯកសារទីពីរ"
    (tmp_path / name).write_bytes((bz2.compress if name.endswith("bz2") else bytes)(dump(*ARTICLES)))
    _, rows = refresh(dump=[name, "z.xml"])
    assert not [row for row in rows if row.get("rule")]
    assert len(rows) == 7


def test_markup_that_cannot_be_parsed_sets_its_page_aside(tmp_path, refresh):
    (tmp_path / "a.xml").write_bytes(dump(page(1, "ខូច", "{{a|" * 500), *ARTICLES[1:]))
    _, rows = refresh(dump="a.xml")
    assert rows[0]["rule"] == "unreadable_markup"
    assert rows[0]["text"] == "{{a|" * 500
    assert "page 1 (ខូច)" in rows[0]["reason"]
    assert len(rows) == 6


def test_limits_end_a_refresh_and_the_next_goes_on(tmp_path, refresh):
    (tmp_path / "a.xml").write_bytes(dump(*ARTICLES))
    figures, rows = refresh(dump="a.xml", max_pages=4)
    assert (len(rows), figures["limit_reached"]) == (4, True)
    figures, rows = refresh(dump="a.xml", max_pages=4)
    assert (len(rows), figures["pages"], figures["limit_reached"]) == (6, 2, False)


def test_a_killed_refresh_goes_on_with_every_page_exactly_once(tmp_path):
    (tmp_path / "a.xml").write_bytes(dump(*(page(n, f"ទំព័រ {n}", f"អត្ថបទលេខ {n}។ " * 9) for n in range(1, 1201))))
    child = f"""
from pathlib import Path
from khmer_assets.foundation import workers
from khmer_assets.sources.kinds import wikipedia
from khmer_assets.sources.collection import Collection
from khmer_assets.recipe import Source

source = Source.model_validate_json({source(dump="a.xml").model_dump_json()!r})
workers.INLINE_CHUNKS, wikipedia.STORED_PAGES = 1_000, 100
with Collection(Path({str(tmp_path / "w.sqlite")!r})) as collection:
    wikipedia.collect(source, Path({str(tmp_path)!r}), collection, lambda text: print(text, flush=True))
"""
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
        process.stdout.readline()  # a hundred pages are stored
        process.kill()
        process.communicate()
    with Collection(tmp_path / "w.sqlite") as collection:
        before = json.loads(collection.noted(f"dump:{tmp_path / 'a.xml'}"))
        assert 200 <= before["pages"] <= 1200
        figures = wikipedia.collect(source(dump="a.xml"), tmp_path, collection, lambda text: None)
        assert figures["pages"] == 1200 - before["pages"]
        assert [int(row["title"].split()[1]) for row in collection.rows()] == list(range(1, 1201))


def test_a_dump_far_away_is_streamed(refresh):
    content = bz2.compress(dump(*ARTICLES))
    with host(lambda request: part(content, request)) as address:
        assert len(refresh(dump=f"{address}/a.xml.bz2")[1]) == 6


# The API


class Wiki:
    """A MediaWiki with pages that change; refuses now and then, as the real ones do."""

    def __init__(self) -> None:
        self.texts = {n: f"អត្ថបទទី {n}" for n in range(1, 121)}
        self.changes = [(n, 1000 + n, f"2026-02-01T00:{n // 60:02}:{n % 60:02}Z") for n in self.texts]
        self.refusals: list[Response] = []
        self.asked: list[Request] = []

    def change(self, number: int, text: str | None) -> None:
        revision = 1000 + len(self.changes) + 1
        self.changes.append((number, revision, f"2026-02-02T00:00:{revision % 60:02}Z"))
        self.texts.pop(number) if text is None else self.texts.update({number: text})

    def __call__(self, request: Request) -> Response:
        self.asked.append(request)
        if self.refusals:
            return self.refusals.pop(0)
        query = request.query
        if query.get("list") == "recentchanges":
            since = query.get("rcstart", "")
            found = [change for change in self.changes if change[2] >= since]
            start, count = int(query.get("rccontinue", 0)), 1 if query["rclimit"] == "1" else 50
            answer: dict = {
                "query": {
                    "recentchanges": [
                        {"type": "edit", "ns": 0, "pageid": n, "revid": r, "timestamp": at}
                        for n, r, at in found[start : start + count]
                    ]
                }
            }
            if start + count < len(found):
                answer["continue"] = {"rccontinue": str(start + count), "continue": "-||"}
        elif query.get("meta") == "siteinfo":
            answer = {
                "query": {
                    "general": {"base": "https://km.example/wiki/ទំព័រដើម"},
                    "namespaces": {"6": {"id": 6, "name": "ឯកសារ"}, "14": {"id": 14, "name": "ចំណាត់ថ្នាក់ក្រុម"}},
                    "namespacealiases": [{"id": 6, "alias": "រូប"}],
                }
            }
        else:
            pages = [self.page(int(number)) for number in query["pageids"].split("|")]
            answer = {"query": {"pages": pages}}
            if len(pages) > 30 and "rvcontinue" not in query:  # texts come in two parts
                for late in pages[30:]:
                    late.pop("revisions", None)
                answer["continue"] = {"rvcontinue": "x", "continue": "||"}
        return Response(json.dumps(answer).encode(), headers={"Content-Type": "application/json"})

    def page(self, number: int) -> dict:
        if number not in self.texts:
            return {"pageid": number, "missing": True}
        _, revision, at = max(change for change in self.changes if change[0] == number)
        slot = {"contentmodel": "wikitext", "content": self.texts[number]}
        found = {"pageid": number, "ns": 0, "title": f"ទំព័រ {number}"}
        if self.texts[number].startswith("#REDIRECT"):
            found["redirect"] = True
        return {**found, "revisions": [{"revid": revision, "timestamp": at, "slots": {"main": slot}}]}


@pytest.fixture
def wiki() -> Iterator[tuple[Wiki, str]]:
    wiki = Wiki()
    with host(wiki) as address:
        yield wiki, f"{address}/w/api.php"


def test_changes_are_fetched_in_batches_and_then_only_what_changed_since(wiki, refresh):
    wiki, api = wiki
    figures, rows = refresh(api=api, contact="corpus@example.org")
    assert figures["articles"] == len(rows) == 120
    assert rows[0]["url"].startswith("https://km.example/wiki/")
    assert all(request.query["maxlag"] == "5" for request in wiki.asked)
    assert all("khmer-llm-factory" in request.headers["User-Agent"] for request in wiki.asked)
    assert all("corpus@example.org" in request.headers["User-Agent"] for request in wiki.asked)
    wiki.change(7, "អត្ថបទដែលបានកែ")
    wiki.change(8, None)
    wiki.change(9, "#REDIRECT [[ក]]")
    wiki.asked.clear()
    figures, rows = refresh(api=api)
    assert (figures["pages"], figures["articles"], figures["gone"], figures["skipped"]) == (3, 1, 1, 1)
    assert [row["text"] for row in rows[120:]] == ["អត្ថបទដែលបានកែ"]
    assert "អត្ថបទទី 8" in [row["text"] for row in rows]
    assert len(wiki.asked) == 3
    assert refresh(api=api)[0]["articles"] == 0


def test_a_dump_comes_first_and_changes_begin_where_it_ends(wiki, tmp_path, refresh):
    wiki, api = wiki
    (tmp_path / "a.xml").write_bytes(dump(*ARTICLES))
    _, rows = refresh(dump="a.xml", api=api)
    assert rows[0]["title"] == "ស្រុកទី 1"
    assert wiki.asked[0].query["rcstart"] == "2026-01-07T00:00:00Z"
    assert len(rows) == 126


def behind(seconds: int) -> Response:
    body = json.dumps({"error": {"code": "maxlag", "info": "Waiting for a database"}}).encode()
    return Response(body, headers={"Retry-After": str(seconds)})


def test_a_busy_host_is_asked_again_after_the_pause_that_it_wants(wiki, refresh):
    wiki, api = wiki
    wiki.refusals = [behind(0), Response(status=429, headers={"Retry-After": "0"}), Response(status=503)]
    figures, rows = refresh(api=api)
    assert figures["articles"] == 120
    assert not [row for row in rows if row.get("rule")]


@pytest.mark.parametrize(
    ("refusals", "reason"),
    [
        ([Response(status=500)] * 5, "status 500, 5 times"),
        ([behind(0)] * 5, "the host is busy, 5 times"),
        ([Response(status=404)], "status 404, expected 200"),
        ([Response(b"<html>")], "not what a MediaWiki API answers"),
        ([Response(b"[]")], "not what a MediaWiki API answers"),
        ([Response(b'{"error": {"code": "badvalue", "info": "x"}}')], "badvalue: x"),
        ([Response(status=302, headers={"Location": "/w/api.php"})] * 20, "redirects"),
    ],
)
def test_an_api_without_an_answer_is_recorded_and_the_next_refresh_mends_it(wiki, refresh, refusals, reason):
    wiki, api = wiki
    wiki.refusals = list(refusals)
    _, rows = refresh(api=api)
    assert [row["rule"] for row in rows] == ["unreachable"]
    assert reason in rows[0]["reason"]
    wiki.refusals = []
    _, rows = refresh(api=api)
    assert len(rows) == 120


def test_what_was_queued_when_the_host_fell_silent_is_fetched_later(wiki, refresh, monkeypatch):
    wiki, api = wiki
    figures, _ = refresh(api=api, max_pages=50)
    assert (figures["articles"], figures["limit_reached"]) == (50, True)
    monkeypatch.setattr(fetching, "TRIES", 1)
    with host(lambda request: time.sleep(0.5) or Response()) as silent:
        monkeypatch.setattr(fetching, "SILENCE", 0.05)
        _, rows = refresh(api=f"{silent}/w/api.php")
        assert "ReadTimeout" in rows[-1]["reason"]
    monkeypatch.undo()
    figures, rows = refresh(api=api)
    assert figures["articles"] == 70
    assert len([row for row in rows if not row.get("rule")]) == 120


# The entry


@pytest.mark.parametrize(
    "wrong", [{}, {"dump": []}, {"api": "km.wikipedia.org"}, {"dump": "a", "max_pages": 0}, {"dump": "a", "pages": 1}]
)
def test_wrong_settings_are_an_error_in_the_recipe(tmp_path, refresh, wrong):
    with pytest.raises(RecipeError, match="source 'w': settings"):
        refresh(**wrong)
    with pytest.raises(RecipeError, match="source 'w': settings"):
        reading.fingerprint(source(**wrong), tmp_path)


def test_a_dump_that_is_not_there_is_an_error_until_something_was_collected(tmp_path, refresh):
    with pytest.raises(SourceError, match=r"nothing is at .*a\.xml; put the files there, or correct 'dump'"):
        refresh(dump="a.xml")
    (tmp_path / "a.xml").write_bytes(dump(*ARTICLES))
    refresh(dump="a.xml")
    (tmp_path / "a.xml").unlink()
    _, rows = refresh(dump="a.xml")
    assert len(rows) == 7
    assert rows[-1]["rule"] == "unreachable"


def test_the_fingerprint_follows_the_dump_the_newest_change_and_the_entry(wiki, tmp_path):
    wiki, api = wiki
    (tmp_path / "a.xml").write_bytes(dump(*ARTICLES))

    def fingerprint(**more: object) -> str:
        return reading.fingerprint(source(dump="a.xml", api=api, **more), tmp_path)

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    seen.append(fingerprint(max_pages=5))
    (tmp_path / "a.xml").write_bytes(dump(*ARTICLES[1:]))
    seen.append(fingerprint())
    wiki.changes.insert(0, (1, 5000, "2026-03-01T00:00:00Z"))
    seen.append(fingerprint())
    assert len(set(seen)) == 4
    wiki.refusals = [Response(status=404)]
    with pytest.raises(SourceError, match="check 'api' in its entry"):
        fingerprint()
