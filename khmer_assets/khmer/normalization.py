r"""One spelling for one word: Khmer text in the canonical order of Unicode Technical Note 61.

A Khmer syllable can be typed in several orders that look alike on the screen. What belongs here are the rules that
give every one of them the same code points, and the cleaning of characters that nobody sees. Each rule has a name:

| rule | what it does | counted in |
|---|---|---|
| lone_surrogate | half of a surrogate pair becomes U+FFFD | characters |
| line_ending | CR LF, CR, VT, FF, NEL, U+2028 and U+2029 become LF | characters |
| control_character | C0 and C1 controls, NUL among them, are removed; tab stays | characters |
| byte_order_mark | U+FEFF is removed, wherever it is | characters |
| invisible_character | soft hyphen, word joiner, directional and interlinear marks are removed | characters |
| zero_width_space | U+200B is removed (by setting) | characters |
| deprecated_letter | U+17A3, U+17A4 and U+17D8 are spelled out, U+17B4 and U+17B5 removed (by setting) | characters |
| nfc | Unicode normalization form C | texts |
| cluster_order | base, robat, subscripts, register shifter, ZWNJ, vowels, signs | syllables |
| repeated_coeng | several coengs, or joiners after one, become one coeng | syllables |
| zero_width_non_joiner | U+200C without a register shifter to act on is removed | syllables |
| doubled_mark | a mark typed twice on the same spot, where the second is not seen, becomes one | syllables |
| composed_vowel | a vowel typed in two parts becomes the one sign | syllables |
| register_shifter | -u before a vowel above stands for the shifter that it looks like | syllables |
| coeng_ro | the subscript ro comes after the other subscripts | syllables |
| coeng_da | the subscript da, which looks the same, becomes the subscript ta | syllables |
| spaces | runs of space separators become one space | runs |
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import chain, groupby
from typing import Literal

from khmer_assets.foundation.settings import Settings


class Normalization(Settings):
    """`zero_width_space`: whether U+200B word marks stay in the text. `fold_deprecated`: replace deprecated letters."""

    zero_width_space: Literal["remove", "keep"] = "remove"
    fold_deprecated: bool = True


def normalize(text: str, settings: Normalization) -> tuple[str, dict[str, int]]:
    """The canonical form of `text`, and how often each rule changed it (rules without a change are left out).

    Normalizing the result again changes nothing. No text makes it fail.
    """
    counts: Counter[str] = Counter()
    if text.isascii() and text.isprintable() and "  " not in text:
        return text, {}
    if ends := text.count("\r\n"):
        counts["line_ending"] += ends
        text = text.replace("\r\n", "\n")
    # By far the most frequent change in Khmer, so not one by one with the other characters.
    if settings.zero_width_space == "remove" and (word_marks := text.count("\u200b")):
        counts["zero_width_space"] += word_marks
        text = text.replace("\u200b", "")
    unwanted, replacements = _replacements(settings.fold_deprecated)

    def replace(match: re.Match[str]) -> str:
        rule, replacement = replacements[match[0]]
        counts[rule] += 1
        return replacement

    text = unwanted.sub(replace, text)
    if not unicodedata.is_normalized("NFC", text):
        counts["nfc"] += 1
        text = _composed_form(text)
    for suspicious in _SUSPICIOUS:
        text = _with_canonical_clusters(text, suspicious, counts)
    text, spaces = _SPACES.subn(" ", text)
    if spaces:
        counts["spaces"] += spaces
    return text, dict(counts)


# --- single characters ----------------------------------------------------------------------------------------------


def _span(first: int, last: int) -> list[str]:
    return [chr(code) for code in range(first, last + 1)]


@lru_cache
def _replacements(fold_deprecated: bool) -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    """A pattern of the characters that do not stay, and the rule and replacement of each."""
    table: dict[str, tuple[str, str]] = {}

    def rule(name: str, characters: list[str], replacement: str = "") -> None:
        table.update((character, (name, replacement)) for character in characters if character not in table)

    rule("lone_surrogate", _span(0xD800, 0xDFFF), "\ufffd")
    rule("line_ending", list("\r\v\f\x85\u2028\u2029"), "\n")
    rule("control_character", _span(0x00, 0x08) + _span(0x0E, 0x1F) + _span(0x7F, 0x9F))  # tab and LF stay
    rule("byte_order_mark", ["\ufeff"])
    rule(
        "invisible_character",
        ["\u00ad", "\u200e", "\u200f", *_span(0x202A, 0x202E), *_span(0x2060, 0x206F), *_span(0xFFF9, 0xFFFB)],
    )
    if fold_deprecated:
        rule("deprecated_letter", ["\u17a3"], "\u17a2")
        rule("deprecated_letter", ["\u17a4"], "\u17a2\u17b6")
        rule("deprecated_letter", ["\u17b4", "\u17b5"])
        rule("deprecated_letter", ["\u17d8"], "\u17d4\u179b\u17d4")
    return re.compile("[" + "".join(map(re.escape, table)) + "]"), table


_SPACE = " \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_SPACES = re.compile(f"[{_SPACE}](?:(?<! )|[{_SPACE}])[{_SPACE}]*")


def _composed_form(text: str) -> str:
    """NFC in linear time. Python sorts a run of marks by insertion, so they are sorted before it sees them."""
    decomposed = "".join(unicodedata.normalize("NFD", character) for character in text)
    runs = groupby(decomposed, key=lambda character: unicodedata.combining(character) > 0)
    return unicodedata.normalize(
        "NFC",
        "".join(chain.from_iterable(sorted(run, key=unicodedata.combining) if marks else run for marks, run in runs)),
    )


# --- syllables ------------------------------------------------------------------------------------------------------

_COENG, _RO, _DA, _TA, _ZWNJ = "\u17d2", "\u179a", "\u178a", "\u178f", "\u200c"
_BASE = "[\u1780-\u17a2\u17a5-\u17b3]"
_SUBSCRIPT = f"\u17d2[\u17d2\u200c\u200d]*{_BASE}"
# U+17DD is left out: it is the only mark that NFC itself moves, and so stays where NFC puts it.
_MARK = "[\u17b6-\u17d1\u17d3\u200c]"
# The letter of a subscript does not begin a syllable.
_CLUSTER = re.compile(f"{_BASE}(?<!\u17d2.)(?:{_MARK}|{_SUBSCRIPT})+")
_INSIDE = frozenset(map(chr, [*range(0x17B6, 0x17D4), 0x200C, 0x200D]))  # what may follow the base, letters aside
_UNIT = re.compile(f"{_SUBSCRIPT}|.", re.DOTALL)

# The order of what follows a base, as character classes; a subscript stands between robat and shifter.
_BEFORE_SUBSCRIPTS = ["\u17cc"]
_AFTER_SUBSCRIPTS = [
    "\u17c9\u17ca",  # register shifters
    _ZWNJ,
    "\u17be-\u17c5",  # vowels written before (and around) the base,
    "\u17bb-\u17bd",  # below,
    "\u17b7-\u17ba",  # above
    "\u17b6",  # and after it
    "\u17c6\u17cb\u17cd-\u17d1\u17d3",  # signs above
    "\u17c7\u17c8",  # visarga and its like
]
_RANK = {
    character: rank
    for rank, span in enumerate([*_BEFORE_SUBSCRIPTS, _COENG, *_AFTER_SUBSCRIPTS])
    for character in map(chr, range(0x17B6, 0x200D))
    if re.fullmatch(f"[{span}]", character)
}
# Every syllable that a rule changes holds one of these; hardly any other does, so canonical text is not taken apart.
# Each begins with a set of characters, because Python finds those fastest.
_SUSPICIOUS = (
    # coeng da, repeated coengs and joiners, robat after a subscript, coeng ro before another coeng
    re.compile(f"{_COENG}(?:[{_DA}{_COENG}{_ZWNJ}\u200d]|.\u17cc|{_RO}{_COENG})", re.DOTALL),
    # two marks, but not the pairs that most syllables with two marks have: shifter and vowel, vowel and sign, two signs
    re.compile(
        "[\u17b6-\u17d1\u17d3][\u17b6-\u17d3]"
        "(?<![\u17c9\u17ca][\u17b6-\u17c5])(?<![\u17b6-\u17c5][\u17c6-\u17c8])(?<!\u17c6[\u17c7\u17c8])"
    ),
    re.compile(_ZWNJ),
)
# Marks that take no room of their own: two of the same look like one. (A vowel after the base, doubled, is seen, and
# writers lengthen a cry with it.)
_DOUBLED = re.compile("([\u17b7-\u17bd\u17c6\u17c9-\u17d1\u17d3\u200c])\\1+")
_E_AND_II = re.compile("\u17c1([\u17bb-\u17bd]?)\u17b8")
_E_AND_AA = re.compile("\u17c1([\u17bb-\u17bd]?)\u17b6")
# -u takes the form of a register shifter under a vowel above; so who types what he sees types -u for a shifter.
_U = re.compile(f"({_BASE}\u17cc?(?:\u17d2{_BASE})*)([\u17be\u17c1-\u17c5]?)\u17bb(.*)", re.DOTALL)
_UNDER_ABOVE = re.compile("[\u17b7-\u17ba]|\u17b6\u17c6")
# Consonants that muusikatoan raises; all other consonants are lowered by triisap. A syllable with BA takes muusikatoan.
_RAISED = frozenset("\u1784\u1789\u178e\u1793\u1794\u1798\u1799\u179a\u179b\u179c\u179d\u17a1") | set(
    _span(0x17A5, 0x17B3)
)
_BA, _MUUSIKATOAN, _TRIISAP = "\u1794", "\u17c9", "\u17ca"


def _with_canonical_clusters(text: str, suspicious: re.Pattern[str], counts: Counter[str]) -> str:
    """`text` with the canonical form of every syllable that holds a match of `suspicious`. Counts the rules."""
    parts: list[str] = []
    written = position = 0  # nothing before `position` is looked at again, so that the time is linear
    while found := suspicious.search(text, position):
        start = found.start()
        while start > position and (text[start] in _INSIDE or text[start - 1] == _COENG):
            start -= 1
        position = found.start() + 1
        if match := _CLUSTER.match(text, start):
            position = max(position, match.end())
            cluster, rules = _canonical_cluster(match[0])
            if rules:
                counts.update(rules)
                parts += text[written : match.start()], cluster
                written = match.end()
    return "".join(parts) + text[written:] if parts else text


def _canonical_cluster(cluster: str) -> tuple[str, tuple[str, ...]]:
    """The canonical form of one syllable and the names of the rules that changed it."""
    # No word has longer syllables: those of an attack do not fill the memory.
    return _remembered_cluster(cluster) if len(cluster) <= 32 else _changed_cluster(cluster)


def _changed_cluster(cluster: str) -> tuple[str, tuple[str, ...]]:
    """As `_canonical_cluster`, without a memory.

    Rules feed each other, so they are repeated until none applies. That ends: each shortens the syllable, removes a
    -u, a U+17BE or a coeng da, or sorts.
    """
    given = cluster
    fired: list[str] = []
    while True:
        before = cluster
        for name, rule in _CLUSTER_RULES:
            changed = rule(cluster)
            if changed != cluster and name not in fired:
                fired.append(name)
            cluster = changed
        if cluster == before:
            return cluster, tuple(fired) if cluster != given else ()


_remembered_cluster = lru_cache(maxsize=1 << 14)(_changed_cluster)


def _single_coengs(cluster: str) -> str:
    return re.sub(f"{_COENG}[{_COENG}\u200c\u200d]+", _COENG, cluster)


def _without_idle_joiner(cluster: str) -> str:
    return cluster if re.search("[\u17c9\u17ca]", cluster) else cluster.replace(_ZWNJ, "")


def _in_order(cluster: str) -> str:
    units: list[str] = _UNIT.findall(cluster[1:])
    return cluster[0] + "".join(sorted(units, key=lambda unit: _RANK[unit[0]]))


def _composed(cluster: str) -> str:
    cluster = cluster.replace("\u17be\u17b6", "\u17c4\u17b8")  # the same strokes, the other way around
    return _E_AND_AA.sub("\u17c4\\1", _E_AND_II.sub("\u17be\\1", cluster))


def _with_shifter(cluster: str) -> str:
    match = _U.match(cluster)
    if not match:
        return cluster
    base, vowel, rest = match.groups()
    raised = _BA in base or not any(letter not in _RAISED for letter in re.findall(_BASE, base))
    above = vowel == "\u17be" or _UNDER_ABOVE.match(rest)
    if raised and not above:  # the sign samyok sannya pushes muusikatoan down as a vowel above does
        above = rest.startswith("\u17d0") and vowel in ("", "\u17c1", "\u17c2", "\u17c3")
    return base + (_MUUSIKATOAN if raised else _TRIISAP) + vowel + rest if above else cluster


def _ro_last(cluster: str) -> str:
    def swap(match: re.Match[str]) -> str:
        units = _UNIT.findall(match[0])
        return "".join(sorted(units, key=lambda unit: unit == _COENG + _RO))

    return re.sub(f"(?:{_COENG}{_BASE}){{2,}}", swap, cluster)


_CLUSTER_RULES: list[tuple[str, Callable[[str], str]]] = [
    ("repeated_coeng", _single_coengs),
    ("zero_width_non_joiner", _without_idle_joiner),
    ("cluster_order", _in_order),
    ("doubled_mark", lambda cluster: _DOUBLED.sub(r"\1", cluster)),
    ("composed_vowel", _composed),
    ("register_shifter", _with_shifter),
    ("coeng_ro", _ro_last),
    ("coeng_da", lambda cluster: cluster.replace(_COENG + _DA, _COENG + _TA)),
]
