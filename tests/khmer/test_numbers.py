"""Khmer digits, number words and dates."""

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.khmer.numbers import (
    LARGEST,
    date_to_words,
    number_to_words,
    to_khmer_digits,
    to_latin_digits,
    words_to_date,
    words_to_number,
)

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
    ],
)
def test_numbers_have_words(number: int, words: str) -> None:
    assert number_to_words(number) == words
    assert words_to_number(words) == number


@given(st.integers(-LARGEST, LARGEST))
def test_the_words_of_any_number_name_it(number: int) -> None:
    assert words_to_number(number_to_words(number)) == number


@pytest.mark.skipif(not GOLD.exists(), reason="the gold table is not on this machine")
def test_words_agree_with_the_gold_table() -> None:
    rows = [line.split("\t") for line in GOLD.read_text(encoding="utf-8").splitlines() if "|integer:" in line]
    assert len(rows) > 200
    for _, markup, words in rows:
        number = int(markup.split(":")[1].rstrip("|"))
        assert words_to_number(words) == number
        # the table writes seven as it is pronounced
        assert number_to_words(number) == words.replace(" ", "").replace("ប្រាំពិល", "ប្រាំពីរ")


@pytest.mark.parametrize("words", ["", "ផ្ទះ", "រយមួយពាន់", "ប្រាំប្រាំ", "មួយរយឆ្នាំ", "ម្ភៃរយ", "ដក", "លានលាន"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(ValueError, match="is not a Khmer number; expected words such as"):
        words_to_number(words)


def test_numbers_without_words_are_refused() -> None:
    with pytest.raises(ValueError, match="more than 12 digits"):
        number_to_words(LARGEST + 1)


@given(st.dates())
def test_the_words_of_any_date_name_it(day: date) -> None:
    assert words_to_date(date_to_words(day)) == day


def test_a_date_in_digits_is_read_too() -> None:
    assert words_to_date("ថ្ងៃទី ៩ ខែវិច្ឆិកា ឆ្នាំ1953") == date(1953, 11, 9)


@pytest.mark.parametrize("words", ["ថ្ងៃទី៩ ខែផ្កា ឆ្នាំ១៩៥៣", "ខែមេសា", "ថ្ងៃទី៣១ ខែកុម្ភៈ ឆ្នាំ២០២៦"])
def test_other_dates_are_refused(words: str) -> None:
    with pytest.raises(ValueError):
        words_to_date(words)
