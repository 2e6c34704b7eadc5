"""Records of web archives (WARC and WET files) with a page in Khmer, and what a page's bytes say.

fastwarc reads; here is what it leaves open: going on after what is broken, noticing what is cut off, and limits.
"""

import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from typing import IO, Any

MAX_PAGE_BYTES = 10_000_000  # of a page; Common Crawl itself cuts pages at 5 MiB
MAX_BROKEN = 1_000  # places in a file; after them the rest is given up
BLOCK_BYTES = 1 << 20

_MEMBER = b"\x1f\x8b\x08"
_PLAIN = b"WARC/1."
_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16
# U+1780 to U+17FF in UTF-8, and as numeric character references
_KHMER = re.compile(rb"\xe1[\x9e\x9f]")
_KHMER_REFERENCE = re.compile(rb"&#(?:60(?:1[6-9]|[2-9]\d)|61[0-3]\d|[xX]17[89a-fA-F][0-9a-fA-F]);")
_ENCODED = re.compile(rb"\n(?:content|transfer)-encoding:|charset *= *[\"']?utf-?(?:16|32)", re.IGNORECASE)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?([\w.:-]+)", re.IGNORECASE)
_HTML = re.compile(rb"<!doctype html|<html|<head|<body", re.IGNORECASE)


@dataclass(frozen=True)
class Record:
    """A record and its place: `offset` in bytes. `block` is an HTTP response, or the text of a WET record."""

    offset: int
    key: str
    url: str | None
    date: str | None
    is_text: bool
    block: bytes


@dataclass(frozen=True)
class Broken:
    """A place where bytes are lost: the `offset` of the record that is lost, or of the last one before, and why."""

    offset: int
    reason: str


class Refused(ValueError):
    """A page that cannot be used: the rule that sets it aside, and why."""

    def __init__(self, rule: str, reason: str):
        super().__init__(reason)
        self.rule = rule


def read_records(stream: IO[bytes], start: int = 0, khmer_only: bool = False) -> Iterator[Record | Broken | None]:
    """The response and conversion records of a file from the offset `start`, in order.

    With `khmer_only`, None stands for each one that holds no Khmer letter. A broken member gives a `Broken` and the
    reading goes on with the next one; a file that is cut off ends with one. `stream` can seek. Memory holds one
    record, and no more of it than `MAX_PAGE_BYTES` and one byte.
    """
    from fastwarc.warc import ArchiveIterator, WarcRecordType, conversion

    wanted = WarcRecordType.response | WarcRecordType.conversion
    stream.seek(0)
    magic = _MEMBER if stream.read(len(_MEMBER)) == _MEMBER else _PLAIN
    begin, last, broken, whole = start, start, 0, True
    while True:
        stream.seek(begin)
        try:
            for record in ArchiveIterator(stream, record_types=wanted, parse_http=False, fsspec_args=False):
                last, whole = record.stream_pos, True
                size = min(record.content_length, MAX_PAGE_BYTES + 1)  # no larger, for so much is allocated
                block = record.reader.read(size)
                if len(block) < size:
                    whole = False
                    yield Broken(last, f"the record has {len(block):,} of {record.content_length:,} bytes")
                elif khmer_only and not _may_hold_khmer(block):
                    yield None
                else:
                    header = record.headers.get
                    key = header("WARC-Payload-Digest") or header("WARC-Record-ID") or f"{header('WARC-Date')} {last}"
                    is_text = record.record_type == conversion
                    yield Record(last, key, header("WARC-Target-URI"), header("WARC-Date"), is_text, block)
            if magic == _PLAIN or not _ends_early(stream, max(begin, last)):
                return
            raise OSError("a gzip member has no end")
        except OSError as error:
            broken += 1
            if whole:  # else the place that is broken is known
                yield Broken(last, f"what follows cannot be read: {error}")
            whole = False
            begin = _find(stream, magic, max(begin, last) + 1)
            if begin < 0:
                return
            if broken == MAX_BROKEN:
                yield Broken(begin, f"more than {MAX_BROKEN:,} places are broken, so the rest is left")
                return


def page_of(record: Record) -> str | None:
    """The HTML of a page, decoded; None for an answer that is no page (another status than 200, another type).

    Types and encodings are not believed against the bytes. Raises `Refused` for a page that cannot be used.
    """
    head, _, body = record.block.partition(b"\r\n\r\n")
    first, _, lines = head.partition(b"\r\n")
    headers = BytesHeaderParser().parsebytes(lines)
    kind = str(headers.get("Content-Type", "")).lower()
    if first.split(None, 2)[1:2] != [b"200"]:
        return None
    if len(record.block) > MAX_PAGE_BYTES:
        raise Refused("too_large", f"the page has over {MAX_PAGE_BYTES:,} bytes")
    body = _decompressed(body, headers)
    if not ("html" in kind or _HTML.search(body, 0, 2_000)):
        return None
    if len(body) > MAX_PAGE_BYTES:
        raise Refused("too_large", f"the page has over {MAX_PAGE_BYTES:,} bytes when decompressed")
    return _text(body, kind)


def _may_hold_khmer(block: bytes) -> bool:
    # the regexes look for their first byte as memchr does, several times faster than `in` looks for two
    if (not block.isascii() and _KHMER.search(block)) or _KHMER_REFERENCE.search(block):
        return True
    if not block.startswith(b"HTTP/"):
        return False
    # a response whose bytes are not the page's own
    end = block.find(b"\r\n\r\n")
    return _ENCODED.search(block, 0, end) is not None or block[end + 4 : end + 6] in _BYTE_ORDER_MARKS


def _decompressed(body: bytes, headers: Any) -> bytes:
    """The body without its transfer and content encodings, at most one byte more than a page may have."""
    from fastwarc.stream_io import BrotliReader, ChunkedReader, GzipReader

    readers = {"chunked": ChunkedReader, "gzip": GzipReader, "x-gzip": GzipReader, "br": BrotliReader}
    for name in ("Transfer-Encoding", "Content-Encoding"):
        encoding = str(headers.get(name, "identity")).strip().lower()
        if encoding not in readers or (readers[encoding] is GzipReader and body[:3] != _MEMBER):
            continue  # the archive holds what was decoded and keeps the header
        try:
            body = readers[encoding](io.BytesIO(body), fsspec_args=False).read(MAX_PAGE_BYTES + 1)
        except OSError as error:
            if not _HTML.search(body, 0, 2_000):
                raise Refused("undecodable", f"the body is not {encoding}, as its header says: {error}") from None
    return body


def _text(body: bytes, kind: str) -> str:
    """Decoded as UTF-8 where the bytes are, else as the page says; what is no character becomes U+FFFD."""
    if body.startswith(_BYTE_ORDER_MARKS):
        return body.decode("utf-16", "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        for place in (kind, body[:2_000].decode("latin-1")):
            if (declared := _CHARSET.search(place)) is not None:
                try:
                    return body.decode(declared[1], "strict")
                except (LookupError, UnicodeDecodeError):
                    continue
        return body.decode("utf-8", "replace")


def _find(stream: IO[bytes], magic: bytes, offset: int) -> int:
    """Where `magic` is at or after the offset, or -1."""
    stream.seek(offset)
    before = b""
    while block := stream.read(BLOCK_BYTES):
        if (found := (before + block).find(magic)) >= 0:
            return offset - len(before) + found
        offset += len(block)
        before = (before + block)[-len(magic) + 1 :]
    return -1


def _ends_early(stream: IO[bytes], offset: int) -> bool:
    """Whether the last gzip member at or after the offset is cut off, which fastwarc takes for the end."""
    stream.seek(offset)
    member = zlib.decompressobj(wbits=31)
    begun = False
    waiting = b""
    try:
        while block := waiting or stream.read(BLOCK_BYTES):
            begun = True
            member.decompress(block, BLOCK_BYTES)
            waiting = member.unconsumed_tail
            if member.eof:
                waiting = member.unused_data
                member, begun = zlib.decompressobj(wbits=31), False
    except zlib.error:
        return True
    return begun
