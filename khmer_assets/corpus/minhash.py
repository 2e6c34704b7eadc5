"""Near-duplicates by MinHash and locality-sensitive hashing: which pairs of signatures may be of texts that are alike.

datasketch, which the tests compare with, does the same a document at a time. Here the loops are compiled, and a band
is sorted instead of looked up.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import njit
from numpy.typing import NDArray

from khmer_assets.foundation.workers import cores

# A pair at the threshold is missed once in a thousand times.
RECALL_AT_THRESHOLD = 0.999
# Signatures estimate the similarity with a standard error of at most 0.5 / sqrt(permutations). What is further below
# the threshold than this many errors is not a candidate.
STANDARD_ERRORS = 4
# In a band that more texts share than this, each is compared with this many of them: what so many texts share is
# mostly copies of the first ones.
COMPARED = 64

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def candidate_pairs(signatures: NDArray[np.uint32], threshold: float) -> Pairs:
    """The pairs of rows of `signatures` (texts, permutations) that may be at least `threshold` similar.

    Each pair comes once, the lower row first. They share a band, and so many values that the similarity may well
    reach the threshold; the similarity itself is for the caller to compute.
    """
    permutations = signatures.shape[1]
    bands, rows = bands_and_rows(permutations, threshold)
    least = least_agreement(permutations, threshold)

    def pairs_of(band: int) -> NDArray[np.int64]:
        keys = _keys(signatures, band * rows, rows)
        return _pairs_of_band(np.argsort(keys), keys, signatures, band, rows, least)

    with ThreadPoolExecutor(cores()) as threads:
        found = np.concatenate(list(threads.map(pairs_of, range(bands))))
    found = found[np.lexsort((found[:, 1], found[:, 0]))]
    return found[:, 0], found[:, 1]


class SignatureIndex:
    """Signatures (texts, permutations) that others are looked up in, for pairs that may be `threshold` similar."""

    def __init__(self, signatures: NDArray[np.uint32], threshold: float):
        self._signatures = signatures
        self._rows = bands_and_rows(signatures.shape[1], threshold)[1]
        self._bands = []
        for first in range(0, signatures.shape[1] - self._rows + 1, self._rows):
            keys = _keys(signatures, first, self._rows)
            order = np.argsort(keys)
            self._bands.append((first, keys[order], order))
        self._least = least_agreement(signatures.shape[1], threshold)

    def candidates(self, others: NDArray[np.uint32]) -> Pairs:
        """As `candidate_pairs`: the rows of the index, and those of `others` that they may be similar to."""
        found = [np.empty((0, 2), dtype=np.int64)]
        for first, known, order in self._bands:
            keys = _keys(others, first, self._rows)
            begin = np.searchsorted(known, keys, side="left")
            sizes = np.minimum(np.searchsorted(known, keys, side="right") - begin, COMPARED)
            other = np.repeat(np.arange(keys.size), sizes)
            place = np.repeat(begin, sizes) + np.arange(other.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
            pairs = np.column_stack([order[place], other])
            agree = (self._signatures[pairs[:, 0]] == others[pairs[:, 1]]).sum(axis=1)
            found.append(pairs[agree >= self._least])
        pairs = np.unique(np.concatenate(found), axis=0)
        return pairs[:, 0], pairs[:, 1]


def least_agreement(permutations: int, threshold: float) -> int:
    """How many values two signatures must share to be candidates."""
    return int(np.ceil((threshold - STANDARD_ERRORS * 0.5 / permutations**0.5) * permutations))


def bands_and_rows(permutations: int, threshold: float) -> tuple[int, int]:
    """How to part a signature: the longest bands that still find a pair at the threshold (`RECALL_AT_THRESHOLD`).

    A pair of similarity s shares a band of r rows, of b, with the probability 1 - (1 - s^r)^b.

    >>> bands_and_rows(128, 0.8)
    (25, 5)
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL_AT_THRESHOLD:
            return bands, rows
    return permutations, 1


@njit(cache=True, nogil=True)
def _keys(signatures: NDArray[np.uint32], first: int, rows: int) -> NDArray[np.uint64]:
    keys = np.empty(signatures.shape[0], dtype=np.uint64)
    for text in range(keys.size):
        key = np.uint64(0)
        for row in range(first, first + rows):
            key = (key ^ np.uint64(signatures[text, row])) * np.uint64(0x9E3779B97F4A7C15)
            key ^= key >> np.uint64(29)
        keys[text] = key
    return keys


@njit(cache=True, nogil=True)
def _pairs_of_band(
    order: NDArray[np.int64],
    keys: NDArray[np.uint64],
    signatures: NDArray[np.uint32],
    band: int,
    rows: int,
    least: int,
) -> NDArray[np.int64]:
    """The candidates of one band that no earlier band has, an array of (pairs, 2)."""
    found = np.empty((1024, 2), dtype=np.int64)
    count = 0
    start = 0
    while start < order.size:
        end = start + 1
        while end < order.size and keys[order[end]] == keys[order[start]]:
            end += 1
        if end - start > 1:
            group = np.sort(order[start:end])
            for later in range(1, group.size):
                for earlier in range(min(later, COMPARED)):
                    first, second = signatures[group[earlier]], signatures[group[later]]
                    if _share_band(first, second, band, rows):
                        continue
                    if (first == second).sum() < least:
                        continue
                    if count == found.shape[0]:
                        larger = np.empty((2 * count, 2), dtype=np.int64)
                        larger[:count] = found
                        found = larger
                    found[count, 0], found[count, 1] = group[earlier], group[later]
                    count += 1
        start = end
    return found[:count].copy()


@njit(cache=True, nogil=True)
def _share_band(first: NDArray[np.uint32], second: NDArray[np.uint32], bands: int, rows: int) -> bool:
    """Whether one of the first `bands` bands is the same."""
    for band in range(bands):
        same = True
        for row in range(band * rows, (band + 1) * rows):
            if first[row] != second[row]:
                same = False
                break
        if same:
            return True
    return False
