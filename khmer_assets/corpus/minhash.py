"""Near-duplicates by MinHash and locality-sensitive hashing: which documents may be alike, and how alike they are.

A document is the set of its character n-grams. datasketch makes the signatures and keeps the index.
"""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from khmer_assets.corpus.ngrams import jaccard, ngram_hashes
from khmer_assets.recipe import Deduplication

if TYPE_CHECKING:
    from datasketch import MinHash

# A pair at the threshold is missed once in a thousand times.
RECALL_AT_THRESHOLD = 0.999
# Signatures estimate the similarity with a standard error of at most 0.5 / sqrt(permutations); a candidate is
# compared exactly unless it is four errors below the threshold.
STANDARD_ERRORS = 4


class NearDuplicates:
    """The documents that were added, to be asked which of them is most like another."""

    def __init__(self, settings: Deduplication):
        from datasketch import MinHash, MinHashLSH

        self._settings = settings
        self._empty = MinHash(num_perm=settings.permutations, hashfunc=int)  # n-grams are hashed already
        self._index = MinHashLSH(
            num_perm=settings.permutations, params=bands_and_rows(settings.permutations, settings.jaccard)
        )
        self._texts: list[str] = []
        self._signatures: list[NDArray[np.uint32]] = []
        self._ngrams = lru_cache(maxsize=4096)(lambda number: distinct_ngrams(self._texts[number], settings.ngram))

    def add(self, text: str, signature: "MinHash") -> None:
        """Add a document; it gets the next number, from 0."""
        self._index.insert(len(self._texts), signature)
        self._texts.append(text)
        self._signatures.append(signature.hashvalues)

    def signature(self, text: str) -> "MinHash":
        """The MinHash of a text."""
        minhash = self._empty.copy()
        # datasketch's permutations are of 32 bits; the upper ones are the better mixed
        minhash.update_batch((distinct_ngrams(text, self._settings.ngram) >> np.uint64(32)).tolist())
        return minhash

    def most_similar(self, text: str, signature: "MinHash") -> tuple[int, float] | None:
        """The number and the exact Jaccard similarity of the most similar document at or above the threshold.

        Of two that are equally similar the one that was added first.
        """
        candidates = sorted(self._index.query(signature))
        if not candidates:
            return None
        signatures = np.stack([self._signatures[candidate] for candidate in candidates])
        agreement = (signatures == signature.hashvalues).mean(axis=1)
        margin = STANDARD_ERRORS * 0.5 / self._settings.permutations**0.5
        own = distinct_ngrams(text, self._settings.ngram)
        best: tuple[int, float] | None = None
        for position in np.flatnonzero(agreement >= self._settings.jaccard - margin):
            similarity = jaccard(own, self._ngrams(candidates[position]))
            if similarity >= self._settings.jaccard and (best is None or similarity > best[1]):
                best = candidates[position], similarity
        return best


def distinct_ngrams(text: str, n: int) -> NDArray[np.uint64]:
    """The hashes of a text's character n-grams, each once, sorted."""
    return np.unique(ngram_hashes(text, n))


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
