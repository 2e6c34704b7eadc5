"""Khmer words are those of khmer-nltk, and every character outside of white space belongs to one word."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from khmer_assets.khmer.words import khmer_words, spaced_words, units, words

PARTS = [
    "កុមារ", "រៀនអក្សរ", "នៅសាលា", "ក្នុងភូមិ", "អ្នកនេសាទ", "ត្រឡប់មកវិញ", "ប្រើកុំព្យូទ័រ", "ហើយ", "ពណ៌ខៀវ", "ឆ្នាំ", "។", "៖", "ៗ", "?",
    "២០២៤", "15", "Angkor", "e-mail", "(", ")", ",", "...", "«", "»", "ក", "ា", "្", "😀", " ",
]  # fmt: skip


def as_khmer_nltk(text: str) -> list[str]:
    from khmernltk import word_tokenize

    return [word.strip() for word in word_tokenize(text) if word.strip()]


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=30).map("".join))
def test_words_are_those_of_khmer_nltk(text):
    text = " ".join(text.split())  # of several spaces it keeps some
    assume("." * 7 not in text)  # cut in many equally good ways
    assert words(text) == (as_khmer_nltk(text) if text else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ខ្ញុំរៀន Python 3.11។", ["ខ្ញុំ", "រៀន", "Python", "3.11", "។"]),
        ("ភូមិ\u200bខ្ញុំ", ["ភូមិ", "ខ្ញុំ"]),
        ("Edit\nThis menu", ["Edit", "This", "menu"]),
        ("a😀b ខ្ញុំ", ["a😀b", "ខ្ញុំ"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_what_ends_a_word(text, expected):
    assert words(text) == expected


@given(st.text())
def test_nothing_but_space_is_outside_of_words(text):
    def squeezed(text: str) -> str:
        return "".join(text.replace("\u200b", "").split())

    assert squeezed("".join(words(text))) == squeezed(text)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_a_text_has_the_same_words_alone_and_among_others(texts):
    data = units("".join(texts))
    offsets = np.cumsum([0, *(units(text).size for text in texts)])
    starts, ends = khmer_words(data, offsets)
    together = [data[start:end].tobytes().decode("utf-16-le") for start, end in zip(starts, ends, strict=True)]
    assert together == [word for text in texts for word in words(text)]


@given(st.text())
def test_spaced_words_are_parted_as_str_split_does(text):
    data = units(text)
    found = [data[start:end].tobytes().decode("utf-16-le") for start, end in zip(*spaced_words(data), strict=True)]
    assert found == text.replace("\u200b", " ").split()
