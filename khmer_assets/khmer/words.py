"""Where words begin and end in text that marks them, as English does, and in text that does not, as Khmer does.

Khmer words are those of khmer-nltk, which FineWeb2's limits count: a conditional random field over clusters of
characters (Phylypo Tum, "Word Segmentation of Khmer Text Using Conditional Random Fields", 2019), F1 0.93 on khPOS.
The field's weights come from the package khmercut, which carries the same ones; the search for the best labels is
compiled here, about a hundred times as fast.

Places are UTF-16 units, so that one array of fixed width holds any text; a character outside the Basic Multilingual
Plane has two.
"""

import struct
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from numba import njit
from numpy.typing import NDArray

Places = NDArray[np.int64]

ZERO_WIDTH_SPACE = "\u200b"
NEWLINE, BLANK = ord("\n"), ord(" ")

# What a character is to the field. A cluster begins at STARTING ones, and at any that is not OWN (of Khmer).
OWN, STARTING, COENG, DIGIT, SPACE, BREAK = (1 << bit for bit in range(6))
NO_SPACE, CONSONANT, VOWEL, SUBSCRIPT, DIACRITIC, LONGER = range(6)  # kinds of clusters; a longer one: LONGER + length
KINDS = {"NS": NO_SPACE, "C": CONSONANT, "W": VOWEL, "S": SUBSCRIPT, "D": DIACRITIC}
LONGEST = 63  # clusters of as many characters or more count as one kind, of which no weight speaks

# Names of the field's features by how many clusters they see, with the place of the cluster that is labelled, counted
# from the first cluster seen.
ROLES = {
    1: {"kcc": 0, "kcc[-1]": 1, "kcc[-2]": 2, "kcc[-3]": 3, "kcc[+1]": -1, "kcc[+2]": -2, "kcc[+3]": -3},
    2: {"kcc[-1:0]": 1, "kcc[-2:-1]": 2, "kcc[-3:-2]": 3, "kcc[+1:0]": 0, "kcc[+1:+2]": -1, "kcc[+2:+3]": -2},
    3: {"kcc[-2:0]": 2, "kcc[-3:-1]": 3, "kcc[0:+2]": 0, "kcc[+1:+3]": -1},
    4: {"kcc[-3:0]": 3, "kcc[0:+3]": 0},
}
KIND_ROLES = {"t": 0, "kcc[-1]t": 1, "kcc[-2]t": 2, "kcc[-3]t": 3, "kcc[+1]t": -1, "kcc[+2]t": -2, "kcc[+3]t": -3}
NO_SPACE_ROLES = {"ns": 0, "ns-1": 1, "ns+1": -1, "ns+2": -2}
REACH = 3  # the farthest cluster that is seen

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, with its bits well spread
_SHIFT = np.uint64(29)


def units(text: str) -> NDArray[np.uint16]:
    """The UTF-16 units of a text, without a byte order mark."""
    return np.frombuffer(text.encode("utf-16-le", "replace"), dtype="<u2")


@cache
def spaces() -> NDArray[np.bool_]:
    """Which units are white space or U+200B."""
    return np.array([chr(code).isspace() or chr(code) == ZERO_WIDTH_SPACE for code in range(1 << 16)])


def spaced_words(data: NDArray[np.uint16]) -> tuple[Places, Places]:
    """First unit of each word, and the unit after its last: what stands between white space and U+200B."""
    inside = np.zeros(data.size + 2, dtype=np.int8)
    inside[1:-1] = ~spaces()[data]
    changes = np.flatnonzero(np.diff(inside))
    return changes[::2], changes[1::2]


def khmer_words(data: NDArray[np.uint16], offsets: Places) -> tuple[Places, Places]:
    """The same for Khmer texts: text `i` is `data[offsets[i]:offsets[i + 1]]`. A line's end always ends a word."""
    field = _field()
    starts, ends = np.empty(data.size, dtype=np.int64), np.empty(data.size, dtype=np.int64)
    count = _find_words(
        data, offsets, _characters(), field.keys, field.weights, field.kinds, field.transitions, starts, ends
    )
    return starts[:count].copy(), ends[:count].copy()


def words(text: str) -> list[str]:
    """The words of a text that may hold Khmer.

    >>> words("ខ្ញុំរៀន Python 3.11។")
    ['ខ្ញុំ', 'រៀន', 'Python', '3.11', '។']
    """
    data = units(text)
    places = khmer_words(data, np.array([0, data.size]))
    return [data[start:end].tobytes().decode("utf-16-le") for start, end in zip(*places, strict=True)]


@cache
def _characters() -> NDArray[np.uint16]:
    """What each unit is: the flags above, and the kind of a cluster of this character alone in the bits from 8."""
    letters, vowels = [chr(code) for code in range(0x1780, 0x17B4)], [chr(code) for code in range(0x17B4, 0x17C9)]
    signs, digits = "៕។ៗ៚៙៘,.? ", "០១២៣៤៥៦៧៨៩0123456789"
    lunar = [chr(code) for code in range(0x19E0, 0x1A00)]
    known = np.zeros(1 << 16, dtype=np.uint16)
    known[0x1780:0x1800] |= OWN
    for signs_of, flags in (
        (signs, OWN),
        (lunar, OWN),
        ([*letters, *signs, *digits, *lunar], STARTING),
        ("\u17d2", COENG),
        (digits, DIGIT),
        ("\n\u200b\u2028\u200a", BREAK),
        ([chr(code) for code in np.flatnonzero(spaces())], SPACE),
        (letters, CONSONANT << 8),
        (vowels, VOWEL << 8),
        ("\u17d2", SUBSCRIPT << 8),
        ([chr(code) for code in range(0x17C9, 0x17D1)], DIACRITIC << 8),
    ):
        known[[ord(sign) for sign in signs_of]] |= flags
    return known


@dataclass(frozen=True)
class _Field:
    """The weights of "a word begins here" over its contrary.

    `weights[slot, r]` are those of the clusters with hash `keys[slot]` (0: free) for the cluster that is r - REACH
    places after the first of them; `kinds[0, kind]` likewise for a cluster of a kind, `kinds[1, 0]` for one that is
    not Khmer, `kinds[1, 1]` for a text's last one. `transitions` are from and to (0: within a word, 1: at its begin).
    """

    keys: NDArray[np.uint64]
    weights: NDArray[np.float32]
    kinds: NDArray[np.float32]
    transitions: NDArray[np.float64]


@cache
def _field() -> _Field:
    """The field of khmercut's model file, in CRFsuite's format.

    A header of 48 bytes names where features, labels and attributes lie. A feature is (type, from, to, weight): type
    0 joins an attribute to a label, type 1 two labels. Names lie in a CQDB chunk, whose index gives each one's record.
    """
    content = files("khmercut").joinpath("crf_ner_10000.crfsuite").read_bytes()
    features_at, labels_at, attributes_at = struct.unpack_from("<3I", content, 28)
    (count,) = struct.unpack_from("<I", content, features_at + 8)
    layout = np.dtype([("type", "<u4"), ("source", "<u4"), ("target", "<u4"), ("weight", "<f8")])
    features = np.frombuffer(content, dtype=layout, count=count, offset=features_at + 12)

    begins = _names(content, labels_at).index("1")
    states = features[features["type"] == 0]
    signs = np.where(states["target"] == begins, 1.0, -1.0)
    names = _names(content, attributes_at)
    weights = np.zeros(len(names))
    np.add.at(weights, states["source"], signs * states["weight"])
    transitions = np.zeros((2, 2))
    for _, source, target, weight in features[features["type"] == 1]:
        transitions[int(source == begins), int(target == begins)] = weight

    places = {role: (n, place) for n, roles in ROLES.items() for role, place in roles.items()}
    kinds = np.zeros((2, LONGER + LONGEST + 1, 2 * REACH + 1), dtype=np.float32)
    texts, counts, columns, values = [], [], [], []
    for name, weight in zip(names, weights, strict=True):
        role, bracket, text = name.partition("]:")
        if bracket:
            role += "]"
        else:
            role, _, text = name.partition(":")
        if role in places:
            n, place = places[role]
            texts.append(text)
            counts.append(n)
            columns.append(place + REACH)
            values.append(weight)
        elif role in KIND_ROLES:
            kind = KINDS.get(text)
            kinds[0, LONGER + int(text[1:]) if kind is None else kind, KIND_ROLES[role] + REACH] = weight
        elif role in NO_SPACE_ROLES:
            kinds[1, 0, NO_SPACE_ROLES[role] + REACH] = weight
        elif role == "EOS":
            kinds[1, 1, REACH] = weight  # BOS is not needed: the first cluster begins a word in any case
    data = units("".join(texts))
    sizes = np.array([len(text.encode("utf-16-le")) // 2 for text in texts])
    ends = np.cumsum(sizes)
    keys = np.zeros(1 << 18, dtype=np.uint64)
    table = np.zeros((keys.size, 2 * REACH + 1), dtype=np.float32)
    _enter(data, ends - sizes, ends, np.array(counts), np.array(columns), np.array(values), keys, table)
    return _Field(keys, table, kinds, transitions)


def _names(content: bytes, at: int) -> list[str]:
    """The strings of a CQDB chunk by number."""
    count, index = struct.unpack_from("<2I", content, at + 16)
    records = np.frombuffer(content, dtype="<u4", count=count, offset=at + index).tolist()
    sizes = [int.from_bytes(content[at + place + 4 : at + place + 8], "little") for place in records]
    return [
        content[at + place + 8 : at + place + 7 + size].decode() for place, size in zip(records, sizes, strict=True)
    ]


@njit(cache=True, nogil=True)
def _key(value: np.uint64, n: int) -> np.uint64:
    value = (value ^ (np.uint64(n) << np.uint64(60))) * _FACTOR  # the number of clusters changes what no character does
    return ((value ^ (value >> _SHIFT)) * _FACTOR) | np.uint64(1)


@njit(cache=True, nogil=True)
def _slot(keys: NDArray[np.uint64], key: np.uint64) -> np.uint64:
    mask = np.uint64(keys.size - 1)
    slot = (key >> np.uint64(20)) & mask
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _enter(
    data: NDArray[np.uint16],
    starts: Places,
    ends: Places,
    counts: Places,
    columns: Places,
    values: NDArray[np.float64],
    keys: NDArray[np.uint64],
    weights: NDArray[np.float32],
) -> None:
    for number in range(starts.size):
        value = np.uint64(0)
        for place in range(starts[number], ends[number]):
            value = value * _FACTOR + np.uint64(data[place]) + np.uint64(1)
        key = _key(value, counts[number])
        slot = _slot(keys, key)
        keys[slot] = key
        weights[slot, columns[number]] += values[number]


@njit(cache=True, nogil=True)
def _find_words(
    data: NDArray[np.uint16],
    offsets: Places,
    characters: NDArray[np.uint16],
    keys: NDArray[np.uint64],
    weights: NDArray[np.float32],
    kinds: NDArray[np.float32],
    transitions: NDArray[np.float64],
    starts: Places,
    ends: Places,
) -> int:
    longest = 1
    for number in range(offsets.size - 1):
        longest = max(longest, offsets[number + 1] - offsets[number])
    first, last = np.empty(longest, dtype=np.int64), np.empty(longest, dtype=np.int64)
    hashes, powers = np.empty(longest, dtype=np.uint64), np.empty(longest, dtype=np.uint64)
    scores = np.empty(longest + 2 * REACH, dtype=np.float64)
    came_from = np.empty((longest, 2), dtype=np.uint8)
    begins = np.empty(longest, dtype=np.uint8)
    found = 0
    for number in range(offsets.size - 1):
        end = offsets[number + 1]
        # Clusters: Khmer ones as they are written, runs of digits, runs of other characters, single spaces.
        clusters = 0
        place = offsets[number]
        while place < end:
            kind = characters[data[place]]
            if kind & BREAK or (data[place] == BLANK and (clusters == 0 or data[last[clusters - 1] - 1] == BLANK)):
                place += 1
                continue
            start = place
            value = np.uint64(0)
            power = np.uint64(1)
            while True:
                value = value * _FACTOR + np.uint64(data[place]) + np.uint64(1)
                power *= _FACTOR
                place += 1
                if place == end or data[place] == BLANK or data[place - 1] == BLANK:
                    break
                following = characters[data[place]]
                if following & BREAK:
                    break
                if kind & OWN == 0:
                    if following & OWN and not (kind & DIGIT and following & DIGIT):
                        break
                elif not (kind & DIGIT and following & DIGIT) and (
                    (following & STARTING or following & OWN == 0) and kind & COENG == 0
                ):
                    break
                kind = following
            first[clusters], last[clusters] = start, place
            hashes[clusters], powers[clusters] = value, power
            clusters += 1
        if clusters == 0:
            continue
        # What speaks for a word to begin at each cluster. scores[i + REACH] is cluster i's, with room on both sides.
        scores[: clusters + 2 * REACH] = 0.0
        for i in range(clusters):
            length = 0
            for place in range(first[i], last[i]):
                length += 1 if data[place] & 0xFC00 != 0xDC00 else 0
            alone = np.int64(characters[data[first[i]]] >> 8)
            shape = alone if length == 1 else LONGER + min(length, LONGEST)
            for role in range(2 * REACH + 1):
                scores[i + role] += kinds[0, shape, role]
                if alone == NO_SPACE:
                    scores[i + role] += kinds[1, 0, role]
            value = np.uint64(0)
            for n in range(1, min(4, clusters - i) + 1):
                value = value * powers[i + n - 1] + hashes[i + n - 1]
                slot = _slot(keys, _key(value, n))
                if keys[slot] != 0:
                    for role in range(2 * REACH + 1):
                        scores[i + role] += weights[slot, role]
        scores[clusters - 1 + REACH] += kinds[1, 1, REACH]
        # The best labels (Viterbi): 1 where a word begins.
        inside, beginning = -1e30, 0.0
        for i in range(1, clusters):
            stay, leave = inside + transitions[0, 0], beginning + transitions[1, 0]
            again, begin = inside + transitions[0, 1], beginning + transitions[1, 1]
            came_from[i, 0] = leave >= stay  # a tie begins a word, as in CRFsuite
            came_from[i, 1] = begin >= again
            inside = max(stay, leave)
            beginning = max(again, begin) + scores[i + REACH]
        label = np.uint8(beginning >= inside)
        for i in range(clusters - 1, 0, -1):
            begins[i] = label
            label = came_from[i, label]
        begins[0] = 1
        i = 0
        while i < clusters:
            start = first[i]
            i += 1
            while i < clusters and not begins[i] and not _line_ends(data, last[i - 1], first[i]):
                i += 1
            stop = last[i - 1]
            while start < stop and characters[data[start]] & SPACE:
                start += 1
            while stop > start and characters[data[stop - 1]] & SPACE:
                stop -= 1
            if start < stop:
                starts[found], ends[found] = start, stop
                found += 1
    return found


@njit(cache=True, nogil=True)
def _line_ends(data: NDArray[np.uint16], start: int, end: int) -> bool:
    for place in range(start, end):  # noqa: SIM110
        if data[place] == NEWLINE:
            return True
    return False
