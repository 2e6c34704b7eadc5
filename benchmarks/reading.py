"""How fast a Wikipedia dump and a web archive are read, against the parsers alone.

    python -m benchmarks.reading

The dump is made from real text: articles with links, templates, references, tables and categories, compressed with
bz2. The bare XML parser is lxml's iterparse over the decompressed file, one process; the bare markup parser is
mwparserfromhell's `strip_code` of every tenth article, its time counted ten times. The archive holds pages of which
one in 200 is Khmer; the bare parser is fastwarc's iterator, which unpacks every record and looks at none. Ours gives
the articles or pages, and, as a whole, the documents in the source's collection on disk. Starting processes counts.
"""

import argparse
import bz2
import gzip
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import polars as pl

from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.sources import warc
from khmer_assets.sources.catalogue import Source
from khmer_assets.sources.collection import Collection
from khmer_assets.sources.kinds import common_crawl, wikipedia

DEFAULT_TEXT = ["office_help.jsonl:km", "wikipedia_lines.jsonl:text"]
DEFAULT_OTHER = "office_help.jsonl:en"
REPETITIONS = 3
KHMER_SHARE = 0.005
SAMPLED = 10  # one in so many articles is given to the bare markup parser


def article(texts: list[str], rng: random.Random) -> str:
    """An article's wikitext, with about as much markup as Wikipedia's have."""
    parts = ["{{Infobox settlement\n| name = ភ្នំពេញ\n| population = {{formatnum:2000000}}\n| image = a.jpg\n}}"]
    for text in rng.sample(texts, rng.randint(2, 12)):
        for _ in range(len(text) // 120):
            cut = rng.randrange(len(text) - 10)
            text = f"{text[:cut]}[[ទន្លេ|{text[cut : cut + 8]}]]{text[cut + 8 :]}"
        parts.append(f'{text}<ref name="a">{{{{cite web|url=https://a.example/1|title=ចំណងជើង|date=2020}}}}</ref>')
        if rng.random() < 0.3:
            parts.append("== ប្រវត្តិ ==")
        if rng.random() < 0.1:
            parts.append("{| class=\"wikitable\"\n! ក !! ខ\n|-\n| ១ || ២\n|-\n| ៣ || '''៤'''\n|}")
    return "\n\n".join([*parts, "{{Reflist}}\n[[ចំណាត់ថ្នាក់ក្រុម:ទីក្រុង]]"])


def make_dump(file: Path, texts: list[str], size: int, seed: int) -> None:
    """A dump of about `size` bytes of XML, in members of a hundred pages, as Wikimedia's multistream dumps have."""
    rng = random.Random(seed)
    members = [
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><base>https://km.example/wiki/a</base>'
        '<namespaces><namespace key="14">ចំណាត់ថ្នាក់ក្រុម</namespace></namespaces></siteinfo>\n'
    ]
    number = written = 0
    while written < size:
        pages = []
        for number in range(number + 1, number + 101):  # noqa: B020
            pages.append(
                f"<page><title>ទំព័រ {number}</title><ns>0</ns><id>{number}</id><revision><id>{number}</id>"
                f"<timestamp>2026-01-01T00:00:00Z</timestamp><model>wikitext</model>"
                f'<text xml:space="preserve">{escape(article(texts, rng))}</text></revision></page>\n'
            )
        members.append("".join(pages))
        written += len(members[-1].encode())
    with file.open("wb") as out:
        for member in [*members, "</mediawiki>"]:
            out.write(bz2.compress(member.encode()))


def make_archive(file: Path, texts: list[str], others: list[str], size: int, seed: int) -> None:
    """A web archive of about `size` bytes of pages, with a request beside each, one gzip member a record."""
    rng = random.Random(seed)
    written = number = 0
    with file.open("wb") as out:
        while written < size:
            number += 1
            chosen = rng.sample(texts if rng.random() < KHMER_SHARE else others, 12)
            menu = "".join(f'<li class="entry"><a href="/section/{n}/page">{n}</a></li>' for n in range(200))
            body = "".join(f"<p>{escape(text)}</p>" for text in chosen)
            html = f"<html><head><title>{number}</title></head><body><ul>{menu}</ul><div>{body}</div></body></html>"
            http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html.encode()
            for kind, block in (("request", b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"), ("response", http)):
                about = (
                    f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:{kind}:{number}>\r\n"
                    f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: https://a.example/{number}\r\n"
                    f"Content-Length: {len(block)}\r\n\r\n"
                )
                out.write(gzip.compress(about.encode() + block + b"\r\n\r\n", 6))
            written += len(http)


def bare_xml(file: Path) -> int:
    """Articles that lxml's iterparse finds."""
    from lxml import etree

    count = 0
    with bz2.open(file) as stream:
        for _, element in etree.iterparse(stream, tag="{*}page"):
            count += 1
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    return count


def our_articles(file: Path) -> int:
    """Articles that the source reads."""
    with bz2.BZ2File(file) as stream:
        return sum(1 for _ in wikipedia.read_pages(stream, file.name))


def bare_markup(wikitexts: list[str]) -> int:
    """The markup parser alone."""
    import mwparserfromhell

    return sum(len(mwparserfromhell.parse(wikitext).strip_code()) for wikitext in wikitexts)


def bare_archive(file: Path) -> int:
    """Response records that fastwarc's iterator gives."""
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    with file.open("rb") as stream:
        records = ArchiveIterator(stream, record_types=WarcRecordType.response, parse_http=False, fsspec_args=False)
        return sum(1 for _ in records)


def our_pages(file: Path) -> int:
    """Response records that the source reads."""
    with file.open("rb") as stream:
        return sum(1 for _ in warc.read_records(stream, khmer_only=True))


def collected(kind: Any, file: Path, **settings: str) -> Callable[[], int]:
    """The whole refresh of a source into a new collection; how many documents it gave."""
    name = kind.__name__.rpartition(".")[2]
    source = Source(name="s", kind=name, language="khm", license="see its origin", settings=settings)

    def run() -> int:
        with (
            tempfile.TemporaryDirectory(dir=file.parent) as folder,
            Collection(Path(folder) / "c.sqlite") as collection,
        ):
            kind.collect(source, file.parent, collection, lambda text: None)
            return collection.counts()["rows"]

    return run


def seconds(run: Callable[[], int]) -> tuple[float, int]:
    """The median time of a few runs, and what the last one counted."""
    times, found = [], 0
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        found = run()
        times.append(time.perf_counter() - started)
    return statistics.median(times), found


def texts_of(name: str) -> list[str]:
    """The texts of JSON lines, named as "path:field"."""
    path, _, field = name.rpartition(":")
    if not Path(path).exists():
        sys.exit(f"{path}: no such file; name JSON lines with --text PATH:FIELD")
    texts = pl.read_ndjson(path, infer_schema_length=None)[field].drop_nulls()
    return [text for text in texts if 100 <= len(text) <= 2_000]


def main() -> None:
    """Make the files, measure, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64, help="of XML, and of pages in the archive")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--text", action="append", metavar="PATH:FIELD", help="JSON lines with Khmer text")
    data = PROJECT.parent / "shared" / "data"
    parser.add_argument("--other", default=str(data / DEFAULT_OTHER), metavar="PATH:FIELD", help="text without Khmer")
    arguments = parser.parse_args()
    texts = [text for name in arguments.text or [str(data / name) for name in DEFAULT_TEXT] for text in texts_of(name)]
    size = arguments.megabytes * 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        dump, archive = Path(folder) / "dump.xml.bz2", Path(folder) / "archive.warc.gz"
        make_dump(dump, texts, size, arguments.seed)
        make_archive(archive, texts, texts_of(arguments.other), size, arguments.seed)
        with bz2.BZ2File(dump) as stream:
            sample = [page.wikitext for page in wikipedia.read_pages(stream, "")][::SAMPLED]
        measured = {
            "dump: lxml iterparse": seconds(lambda: bare_xml(dump)),
            "dump: articles read": seconds(lambda: our_articles(dump)),
            "dump: mwparserfromhell strip_code, one in ten": seconds(lambda: bare_markup(sample)),
            "dump: documents collected": seconds(collected(wikipedia, dump, dump=str(dump))),
            "archive: fastwarc iterator": seconds(lambda: bare_archive(archive)),
            "archive: records read": seconds(lambda: our_pages(archive)),
            "archive: documents collected": seconds(collected(common_crawl, archive, files=str(archive))),
        }
    table = [
        {"what": name, "seconds": f"{time_:.2f}", "MB/s": f"{size / time_ / 1e6:.1f}", "count": f"{count:,}"}
        for name, (time_, count) in measured.items()
    ]
    print(markdown_table(pl.DataFrame(table)))
    xml, articles, markup, dump_whole, iterator, records, archive_whole = (time_ for time_, _ in measured.values())
    ratios = {
        "dump_ratio": articles / xml,
        "dump_collected_ratio": dump_whole / xml,
        "dump_collected_to_both_parsers": dump_whole / (xml + SAMPLED * markup),
        "warc_ratio": records / iterator,
        "warc_collected_ratio": archive_whole / iterator,
    }
    print(json.dumps({name: round(ratio, 3) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    main()
