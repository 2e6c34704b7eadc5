"""Character n-grams as numbers, for all that compares texts by what they share. No words: Khmer writes no spaces.

The loops over characters are compiled. A text's n-grams are the runs of `n` characters of the text without white
space; a shorter text has one, all of it, and an empty one none.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numba import njit
from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, with its bits well spread: 2^64 divided by the golden ratio
_SHIFT = np.uint64(32)
_LANES = 32  # a multiple of what the processor's vectors hold
_BLOCK = 1024  # hashes that stay in the nearest cache while all permutations see them


@dataclass(frozen=True)
class Texts:
    """Many texts as one array: text `i` is the UTF-8 in `data[offsets[i]:offsets[i + 1]]`."""

    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, texts: pl.Series) -> "Texts":
        """The texts of a series of strings; null counts as empty."""
        import pyarrow as pa

        strings = texts.fill_null("").rechunk().to_arrow().cast(pa.large_string())
        _, offsets, data = strings.buffers()
        first = np.frombuffer(offsets, dtype=np.int64, count=len(strings) + 1, offset=8 * strings.offset)
        return cls(np.frombuffer(data or b"", dtype=np.uint8), first)

    def __len__(self) -> int:
        return self.offsets.size - 1


@njit(cache=True, nogil=True)
def _is_space(code: int) -> bool:
    """As str.isspace()."""
    if code < 0x1680:  # Khmer lies above
        return code == 32 or 9 <= code <= 13 or 28 <= code <= 31 or code == 0x85 or code == 0xA0
    if code < 0x2000:
        return code == 0x1680
    return code <= 0x200A or code == 0x2028 or code == 0x2029 or code == 0x202F or code == 0x205F or code == 0x3000


@njit(cache=True, nogil=True)
def _hash_into(data: NDArray[np.uint8], n: int, codes: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> int:
    """Write the hashes of one text's n-grams to `hashes`, in order; return how many. `codes` is room to work in."""
    count = 0
    place = 0
    while place < data.size:
        lead = int(data[place])
        if lead < 0x80:
            code = lead
            place += 1
        elif lead < 0xE0:
            code = (lead & 0x1F) << 6 | int(data[place + 1]) & 0x3F
            place += 2
        elif lead < 0xF0:
            code = (lead & 0x0F) << 12 | (int(data[place + 1]) & 0x3F) << 6 | int(data[place + 2]) & 0x3F
            place += 3
        else:
            code = (lead & 0x07) << 18 | (int(data[place + 1]) & 0x3F) << 12
            code |= (int(data[place + 2]) & 0x3F) << 6 | int(data[place + 3]) & 0x3F
            place += 4
        if not _is_space(code):
            codes[count] = code
            count += 1
    n = min(n, count)
    if n == 0:
        return 0
    # a polynomial of the characters modulo 2^64, rolled on from run to run
    oldest = np.uint64(1)
    rolled = np.uint64(0)
    for place in range(n):
        oldest *= _MULTIPLIER
        rolled = rolled * _MULTIPLIER + codes[place]
    hashes[0] = _mixed(rolled)
    for place in range(n, count):
        rolled = rolled * _MULTIPLIER + codes[place] - oldest * codes[place - n]
        hashes[place - n + 1] = _mixed(rolled)
    return count - n + 1


@njit(cache=True, nogil=True)
def _mixed(value: np.uint64) -> np.uint64:
    value *= _MULTIPLIER
    return (value ^ (value >> _SHIFT)) * _MULTIPLIER


@njit(cache=True, nogil=True)
def _hashes(data: NDArray[np.uint8], n: int) -> NDArray[np.uint64]:
    hashes = np.empty(data.size, dtype=np.uint64)
    return hashes[: _hash_into(data, n, np.empty(data.size, dtype=np.uint64), hashes)].copy()


def ngram_hashes(text: str, n: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every n-gram of a text, in order."""
    return _hashes(np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8), n)


@njit(cache=True, nogil=True)
def _signatures(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], n: int, factors: NDArray[np.uint32], shifts: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    longest = 1
    for number in range(offsets.size - 1):
        longest = max(longest, offsets[number + 1] - offsets[number])
    codes, wide = np.empty(longest, dtype=np.uint64), np.empty(longest, dtype=np.uint64)
    hashes = np.empty(longest + _LANES, dtype=np.uint32)
    signatures = np.full((offsets.size - 1, factors.size), np.uint32(0xFFFFFFFF), dtype=np.uint32)
    for number in range(offsets.size - 1):
        count = _hash_into(data[offsets[number] : offsets[number + 1]], n, codes, wide)
        for place in range(count):
            hashes[place] = np.uint32(wide[place] >> _SHIFT)  # the upper bits are the better mixed
        while count % _LANES:  # the last n-gram again changes nothing, and vectors have no rest
            hashes[count] = hashes[count - 1]
            count += 1
        own = signatures[number]
        for start in range(0, count, _BLOCK):
            block = hashes[start : min(start + _BLOCK, count)]
            for permutation in range(factors.size):
                factor, shift, least = factors[permutation], shifts[permutation], own[permutation]
                for place in range(block.size):
                    least = min(least, np.uint32(block[place] * factor + shift))
                own[permutation] = least
    return signatures


def signatures(texts: Texts, n: int, permutations: int) -> NDArray[np.uint32]:
    """The MinHash signatures of the texts' n-grams, an array of (texts, permutations); all ones for an empty text.

    Permutation `k` is `factor_k * hash + shift_k` modulo 2^32 with odd factors (Dietzfelbinger et al. 1997), from a
    fixed seed, so that signatures of different runs can be compared.
    """
    draws = np.random.default_rng(1).integers(0, 1 << 32, size=(2, permutations), dtype=np.uint32)
    return _signatures(texts.data, texts.offsets, n, draws[0] | np.uint32(1), draws[1])


@njit(cache=True, nogil=True)
def _slot(table: NDArray[np.uint64], value: np.uint64) -> np.uint64:
    """Where a value, which is not 0, stands in a table of open addressing (0: free), or where it would."""
    mask = np.uint64(table.size - 1)
    slot = value & mask
    while table[slot] != 0 and table[slot] != value:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    size = 16
    while size < 2 * max(first.size, second.size):
        size *= 2
    table, seen = np.zeros(size, dtype=np.uint64), np.zeros(size, dtype=np.uint64)
    union = shared = 0
    for place in range(first.size):
        value = max(first[place], np.uint64(1))
        slot = _slot(table, value)
        if table[slot] == 0:
            table[slot] = value
            union += 1
    for place in range(second.size):
        value = max(second[place], np.uint64(1))
        slot = _slot(seen, value)
        if seen[slot] == value:
            continue
        seen[slot] = value
        if table[_slot(table, value)] == value:
            shared += 1
        else:
            union += 1
    return shared / union if union else 1.0


@njit(cache=True, nogil=True)
def _jaccards(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], first: NDArray[np.int64], second: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    similarities = np.empty(first.size, dtype=np.float64)
    former = np.int64(-1)
    own = np.empty(0, dtype=np.uint64)
    for pair in range(first.size):
        if first[pair] != former:
            former = first[pair]
            own = _hashes(data[offsets[former] : offsets[former + 1]], n)
        other = second[pair]
        similarities[pair] = _jaccard(own, _hashes(data[offsets[other] : offsets[other + 1]], n))
    return similarities


def jaccards(texts: Texts, first: NDArray[np.int64], second: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """The Jaccard similarity (0 to 1) of the n-gram sets of each pair of texts `first[i]`, `second[i]`.

    Pairs that are sorted by `first` are the fastest.
    """
    return _jaccards(texts.data, texts.offsets, first, second, n)


@njit(cache=True, nogil=True)
def _counted(data: NDArray[np.uint8], offsets: NDArray[np.int64], n: int, dimensions: int) -> NDArray[np.float32]:
    counts = np.zeros((offsets.size - 1, dimensions), dtype=np.float32)
    for number in range(offsets.size - 1):
        for value in _hashes(data[offsets[number] : offsets[number + 1]], n):
            sign = np.float32(1) if value & np.uint64(1) else np.float32(-1)
            counts[number, (value >> _SHIFT) % np.uint64(dimensions)] += sign
    return counts


def hashed_counts(texts: Texts, n: int, dimensions: int) -> NDArray[np.float32]:
    """The n-grams of each text counted in a fixed number of dimensions, an array of (texts, dimensions).

    Half of the n-grams count negatively, so that those that meet in a dimension cancel on average (Weinberger et al.
    2009, "Feature Hashing for Large Scale Multitask Learning").
    """
    return _counted(texts.data, texts.offsets, n, dimensions)
