"""The plain text of a page in wikitext. mwparserfromhell parses; what readers of the text need is kept.

Kept are paragraphs, list items and headings that have text below them, and what links show. Left out are templates,
tables, files, galleries, references, formulas, comments and links to categories and to other languages.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LEFT_OUT = frozenset(
    {"ce", "chem", "gallery", "graph", "hiero", "imagemap", "indicator", "inputbox", "mapframe", "maplink", "math"}
    | {"ref", "references", "score", "script", "section", "source", "style", "syntaxhighlight", "table"}
    | {"templatedata", "templatestyles", "timeline"}
)
PARAGRAPHS = frozenset({"p", "div", "li", "dt", "dd", "blockquote", "center"})
LEVEL = "\0"  # as many before a line as its heading's level; wikitext cannot hold it

MOST_LEFT_OPEN = 300  # a second of the parser's time at most
MOST_NESTED = 12

_VERBATIM = re.compile(r"<(nowiki|pre|syntaxhighlight|source|math)\b|\{\{\{", re.IGNORECASE)
_TEMPLATE = re.compile(r"\{\{[^{}\[\]<>|]+(?:\|[^{}]*)?\}\}")
_SIMPLE = (  # references, tables, links with a text of their own and without
    (re.compile(r"<ref(?:\s[^<>]*)?(?:/>|(?<!/)>[^<]*</ref\s*>)", re.IGNORECASE), ""),
    (re.compile(r"^\{\|[^{}]*\n[ \t]*\|\}", re.MULTILINE), ""),
    (re.compile(r"\[\[[^\[\]{}|<>:\n]+\|([^\[\]{}|<>\n]+)\]\](?!\])"), r"\1"),
    (re.compile(r"\[\[([^\[\]{}|<>:\n]+)\]\](?!\])"), r"\1"),
)
_MARKS = re.compile(r"\{\{|\}\}|\[\[|\[h(?=ttp)|\]\]?|</|<(?!br\b|hr\b|wbr\b)[a-zA-Z][^<>]*>?")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*\s*:")  # a link to the page in another language
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_EMPTY_BRACKETS = re.compile(r"[ \u00a0]?\([ \u00a0,;:/]*\)")  # a template stood in them
_SPACES = re.compile(r"[ \t\u00a0]{2,}|[\t\u00a0]")


class MarkupError(ValueError):
    """Wikitext that cannot be parsed."""


@dataclass(frozen=True)
class Names:
    """How a wiki calls the namespaces of files and of categories, in lower case."""

    files: frozenset[str]
    categories: frozenset[str]

    @classmethod
    def of(cls, namespaces: dict[int, set[str]]) -> "Names":
        """From names by number; the English ones hold in every wiki."""
        files = {"file", "image", "media"} | namespaces.get(6, set()) | namespaces.get(-2, set())
        categories = {"category"} | namespaces.get(14, set())
        return cls(frozenset(map(str.casefold, files)), frozenset(map(str.casefold, categories)))


def plain_text(wikitext: str, names: Names) -> tuple[str, str | None]:
    """The text that a reader of the page sees, and its first category.

    Raises `MarkupError` where more markup is left open than the parser can bear: its time grows with the square of it.
    """
    import mwparserfromhell

    categories: list[str] = []
    rest = _without_simple_markup(wikitext.replace(LEVEL, ""))
    if (count := _left_open(rest)) > MOST_LEFT_OPEN:
        raise MarkupError(f"{count:,} templates, links or tags are left open, more than {MOST_LEFT_OPEN}")
    try:
        text = "".join(_visible(mwparserfromhell.parse(rest), names, categories))
    except (mwparserfromhell.parser.ParserError, RecursionError) as error:
        raise MarkupError(f"the parser gave up: {error}") from None
    text = _EMPTY_BRACKETS.sub("", _MAGIC_WORD.sub("", text))
    return _tidy(text), next(iter(categories), None)


def _without_simple_markup(wikitext: str) -> str:
    """Without comments, templates and references that hold no other braces or tags, from the inside out, and with the
    text of plain links instead of them.

    The parser comes to the same, and spends most of its time on them.
    """
    first, *others = wikitext.split("<!--")
    wikitext = first + "".join(other.partition("-->")[2] for other in others)  # an open one hides all that follows
    if _VERBATIM.search(wikitext):
        return wikitext
    for _ in range(MOST_NESTED):
        wikitext, count = _TEMPLATE.subn("", wikitext)
        if not count:
            break
    for pattern, instead in _SIMPLE:
        wikitext = pattern.sub(instead, wikitext)
    return wikitext


def _left_open(wikitext: str) -> int:
    open_: dict[str, int] = {}
    for mark in _MARKS.findall(wikitext):
        match mark[:2]:
            case "}}" | "]]" | "</":
                kind = {"}}": "{{", "]]": "[[", "</": "<"}[mark[:2]]
                open_[kind] = max(0, open_.get(kind, 0) - 1)
            case "{{" | "[[" | "[h":
                open_[mark[:2]] = open_.get(mark[:2], 0) + 1
            case "]":
                open_["[h"] = max(0, open_.get("[h", 0) - 1)
            case _ if not mark.endswith("/>"):
                open_["<"] = open_.get("<", 0) + 1
    return max(open_.values(), default=0)


def _visible(code: Any, names: Names, categories: list[str]) -> Iterator[str]:
    from mwparserfromhell import nodes

    for node in code.nodes:
        match node:
            case nodes.Text():
                yield node.value
            case nodes.Wikilink():
                title = str(node.title).strip()
                namespace = title.partition(":")[0].strip().casefold() if ":" in title else ""
                if namespace in names.categories:
                    categories.append(title.partition(":")[2].strip())
                elif namespace not in names.files and (node.text is not None or not _LANGUAGE.match(title)):
                    shown = node.title if node.text is None else node.text
                    yield "".join(_visible(shown, names, categories)).removeprefix(":")
            case nodes.Tag():
                tag = str(node.tag).strip().lower()
                if tag in ("br", "hr"):
                    yield "\n"
                elif tag not in LEFT_OUT and not node.self_closing and node.contents is not None:
                    yield from _visible(node.contents, names, categories)
                    if tag in PARAGRAPHS:
                        yield "\n"
            case nodes.Heading():
                yield LEVEL * node.level + " ".join("".join(_visible(node.title, names, categories)).split())
            case nodes.ExternalLink():
                link = node.title if node.brackets else node.url
                if link is not None:
                    yield from _visible(link, names, categories)
            case nodes.HTMLEntity():
                yield node.normalize().replace(LEVEL, "")


def _tidy(text: str) -> str:
    """Lines without spaces around them, at most one empty one between two, and no heading without text below it."""
    lines: list[str] = []
    level = 0  # going up, headings of a lower level than this one have text below them
    for line in reversed(_SPACES.sub(" ", text).split("\n")):
        own = len(line) - len(line.lstrip(LEVEL))
        line = line[own:].strip()
        if own and own >= level:
            continue
        if line:
            level = own or 7
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(reversed(lines)).strip("\n")
