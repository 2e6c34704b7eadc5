"""Character n-grams as numbers, for all that compares texts by what they share. No words: Khmer writes no spaces."""

import numpy as np
from numpy.typing import NDArray

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, with its bits well spread: 2^64 divided by the golden ratio


def ngram_hashes(text: str, n: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every run of `n` characters of the text without white space, in order.

    A shorter text gives one hash of all of it, an empty one none.
    """
    codes = np.frombuffer("".join(text.split()).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    n = min(n, codes.size)
    if n == 0:
        return codes
    # polynomial hashes modulo 2^64; a run of a + b characters is a run of a and, behind it, a run of b
    runs, length = codes, 1
    for bit in f"{n:b}"[1:]:
        runs, length = _joined(runs, length, runs, length), 2 * length
        if bit == "1":
            runs, length = _joined(runs, length, codes, 1), length + 1
    runs = runs * np.uint64(_MULTIPLIER)
    return (runs ^ (runs >> np.uint64(32))) * np.uint64(_MULTIPLIER)


def _joined(
    first: NDArray[np.uint64], first_length: int, second: NDArray[np.uint64], second_length: int
) -> NDArray[np.uint64]:
    second = second[first_length:]
    weight = np.uint64(pow(_MULTIPLIER, second_length, 1 << 64))
    return first[: second.size] * weight + second


def jaccard(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    """Jaccard similarity (0 to 1) of two sorted arrays without repetitions."""
    shared = np.intersect1d(first, second, assume_unique=True).size
    union = first.size + second.size - shared
    return shared / union if union else 1.0
