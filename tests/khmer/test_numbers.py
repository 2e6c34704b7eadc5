"""Khmer digits and number words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.khmer.numbers import LARGEST, number_to_words, to_khmer_digits, to_latin_digits, words_to_number

GOLD = Path(__file__).parents[3] / "shared" / "data" / "verbalised_cardinal.tsv"


def test_digits_change_and_the_rest_of_the_text_stays() -> None:
    assert to_khmer_digits("ម៉ោង 7:45") == "ម៉ោង ៧:៤៥"
    assert to_latin_digits("ម៉ោង ៧:៤៥") == "ម៉ោង 7:45"


@given(st.text())
def test_digits_of_any_text_come_back(text: str) -> None:
    assert to_latin_digits(to_khmer_digits(text)) == to_latin_digits(text)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "សូន្យ"),
        (7, "ប្រាំពីរ"),
        (19, "ដប់ប្រាំបួន"),
        (85, "ប៉ែតសិបប្រាំ"),
        (-40, "ដកសែសិប"),
        (2026, "ពីរពាន់ម្ភៃប្រាំមួយ"),
        (15_000, "មួយម៉ឺនប្រាំពាន់"),
        (325_000_000, "បីរយម្ភៃប្រាំលាន"),
        (2_000_000_000_000, "ពីរពាន់ប៊ីលាន"),
    ],
)
def test_numbers_have_words(number: int, words: str) -> None:
    assert number_to_words(number) == words
    assert words_to_number(words) == number


def test_seven_is_written_as_it_is_pronounced_on_request() -> None:
    assert number_to_words(707, pronounced=True) == "ប្រាំពិលរយប្រាំពិល"


@given(st.integers(-LARGEST, LARGEST) | st.integers(-9_999, 9_999), st.booleans())
def test_the_words_of_any_number_name_it(number: int, pronounced: bool) -> None:
    assert words_to_number(number_to_words(number, pronounced=pronounced)) == number


@pytest.mark.skipif(not GOLD.exists(), reason="the gold table is not on this machine")
def test_words_agree_with_the_gold_table_in_both_directions() -> None:
    rows = [line.split("\t") for line in GOLD.read_text(encoding="utf-8").splitlines() if "|integer:" in line]
    numbers = [(int(markup.split(":")[1].rstrip("|")), words) for _, markup, words in rows]
    assert len(numbers) > 200
    assert [n for n, words in numbers if number_to_words(n, pronounced=True) != words.replace(" ", "")] == []
    assert [n for n, words in numbers if words_to_number(words) != n] == []


@pytest.mark.parametrize(
    "words", ["", "ផ្ទះ", "រយមួយពាន់", "ប្រាំប្រាំ", "មួយរយឆ្នាំ", "ម្ភៃរយ", "ដក", "ដកដកមួយ", "លានលាន", "មួយសូន្យ", "ប៊ីលាន" * 9]
)
def test_other_words_name_no_number(words: str) -> None:
    assert words_to_number(words) is None


@given(st.text() | st.text(st.sampled_from("មួយពីរបនប្រាំសិដកលាន៊់")))
def test_any_text_may_be_asked(text: str) -> None:
    assert words_to_number(text) is None or text.strip()


def test_numbers_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 15 digits"):
        number_to_words(LARGEST + 1)
