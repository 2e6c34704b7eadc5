"""A short text as hashed character n-grams, for the gateway: as the label model sees texts
(`khmer_assets/labels/features.py`), in numpy alone, for compiling that one takes seconds.

Runs of 1 to 5 characters, with small letters for capitals, one space for any white space, 0 for any digit, and without
the invisible characters that may mark word breaks. A text that is longer than `CHARACTERS` is seen by its two ends,
where people say what they want.
"""

import numpy as np
from numpy.typing import NDArray

LONGEST = 5  # characters
BITS = 15
BUCKETS = 1 << BITS
CHARACTERS = 1000
INVISIBLE = dict.fromkeys([0, 0x00AD, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF])

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_SEED = np.uint64(0xCBF29CE484222325)
_SHIFT = np.uint64(32)
_BUCKET_SHIFT = np.uint64(64 - BITS)


def ngrams(*texts: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The buckets of texts that are seen together, and their weights; those of one do not weaken another's."""
    found = [_ngrams(text) for text in texts]
    return np.concatenate([buckets for buckets, _ in found]), np.concatenate([weights for _, weights in found])


def _ngrams(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The buckets of a text, each once, and the weight of each: 1 + ln of how often, all together of length 1."""
    if len(text) > CHARACTERS:
        text = f"{text[: CHARACTERS // 2]} {text[-CHARACTERS // 2 :]}"
    words = " ".join(text.translate(INVISIBLE).split())
    if not words:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    folded = "".join("0" if sign.isdigit() else one if len(one := sign.lower()) == 1 else sign for sign in f" {words} ")
    signs = np.frombuffer(folded.encode("utf-16-le", "replace"), dtype="<u2").astype(np.uint64)
    values = np.full(len(signs), _SEED)
    found = []
    with np.errstate(over="ignore"):
        for length in range(min(LONGEST, len(signs))):
            values = (values[: len(signs) - length] ^ signs[length:]) * _FACTOR
            values ^= values >> _SHIFT
            found.append((values * _FACTOR) >> _BUCKET_SHIFT)
    buckets, counts = np.unique(np.concatenate(found).astype(np.int64), return_counts=True)
    weights = 1 + np.log(counts)
    return buckets, (weights / np.sqrt((weights**2).sum())).astype(np.float32)
