"""Sentences end where a reader of Khmer or English sees them end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.khmer.sentences import count_sentences, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ភ្លៀងធ្លាក់។ ផ្លូវរអិល៕ តើអ្នកទៅទេ? ទៅ!", ["ភ្លៀងធ្លាក់។", "ផ្លូវរអិល៕", "តើអ្នកទៅទេ?", "ទៅ!"]),
        ("មានស្វាយ ចេក ។ល។ នៅក្នុងសួន។", ["មានស្វាយ ចេក ។ល។ នៅក្នុងសួន។"]),
        ("គាត់ថា «មកណេះ!» ហើយដើរទៅ", ["គាត់ថា «មកណេះ!»", "ហើយដើរទៅ"]),
        ("It costs 1.50 at shop.example.org. Really?! Yes", ["It costs 1.50 at shop.example.org.", "Really?!", "Yes"]),
        ("Mrs. Sok and Dr. Chan came. They ate", ["Mrs. Sok and Dr. Chan came.", "They ate"]),
        ("one line\nanother line", ["one line", "another line"]),
        (" ។ ... ! ", []),
        ("", []),
    ],
)
def test_sentences_are_parted_at_their_final_marks_and_at_lines(text, expected):
    assert list(sentences(text)) == expected
    assert count_sentences(text) == len(expected)


PIECES = ("ខ្ញុំ", "ទៅ", "។", "៕", "។ល។", "?", "!", ".", " ", "\n", "a", "1", "«", "»", "…")


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_no_word_is_lost(text: str) -> None:
    """Nothing but marks without a word, and white space, is left out."""
    kept = "".join("".join(sentences(text)).split())
    marks = str.maketrans("", "", "។៕?!.…«» \n")
    assert kept.translate(marks) == "".join(text.split()).translate(marks)
