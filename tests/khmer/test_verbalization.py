"""Sentences get their numbers in words, and back, or a reason why not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.khmer.numbers import LARGEST, number_to_words, to_khmer_digits
from khmer_assets.khmer.verbalization import Verbalized, verbalize, verbalized_sentences, words_to_digits


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("ភូមិនេះមាន៤៥គ្រួសារ។", "ភូមិនេះមានសែសិបប្រាំគ្រួសារ។"),
        ("ភូមិនេះមាន 7 គ្រួសារ។", "ភូមិនេះមាន ប្រាំពិល គ្រួសារ។"),
        ("ស្រូវ 1,250 តោន", "ស្រូវ មួយពាន់ពីររយហាសិប តោន"),
        ("ប្រជាជន ១.២០០.០០០ នាក់", "ប្រជាជន មួយលានពីរសែន នាក់"),
        ("កម្ពស់ 1,65 ម៉ែត្រ", "កម្ពស់ មួយក្បៀសប្រាំមួយប្រាំ ម៉ែត្រ"),
        ("កម្ពស់ 0.05 ម៉ែត្រ", "កម្ពស់ សូន្យចុចសូន្យប្រាំ ម៉ែត្រ"),
        ("ទិន្នផលកើន ១០% និង 5 %។", "ទិន្នផលកើន ដប់ភាគរយ និង ប្រាំភាគរយ។"),
        ("នំមួយថ្លៃ ៥០០៛ ឬ $2.5", "នំមួយថ្លៃ ប្រាំរយរៀល ឬ ពីរចុចប្រាំដុល្លារ"),
        ("សីតុណ្ហភាព -4 អង្សា", "សីតុណ្ហភាព ដកបួន អង្សា"),
        ("មេរៀនទី១៖ ការអាន (២ម៉ោង)", "មេរៀនទីមួយ៖ ការអាន (ពីរម៉ោង)"),
        ("កើតនៅថ្ងៃទី៨ ខែឧសភា ឆ្នាំ១៩៩០។", "កើតនៅថ្ងៃទីប្រាំបី ខែឧសភា ឆ្នាំមួយពាន់ប្រាំបួនរយកៅសិប។"),
        ("ប្រជុំនៅ 08/05/1990", "ប្រជុំនៅ ថ្ងៃទីប្រាំបី ខែឧសភា ឆ្នាំមួយពាន់ប្រាំបួនរយកៅសិប"),
        ("ប្រជុំនៅថ្ងៃទី០៨-០៥-១៩៩០", "ប្រជុំនៅថ្ងៃទីប្រាំបី ខែឧសភា ឆ្នាំមួយពាន់ប្រាំបួនរយកៅសិប"),
        ("ប្រជុំថ្ងៃ1990-05-08.", "ប្រជុំថ្ងៃទីប្រាំបី ខែឧសភា ឆ្នាំមួយពាន់ប្រាំបួនរយកៅសិប."),
        ("ថ្ងៃទី០៨ ខែ០៥", "ថ្ងៃទីប្រាំបី ខែប្រាំ"),
        ("គ្មានលេខទេ", "គ្មានលេខទេ"),
    ],
)
def test_numbers_of_a_sentence_are_put_in_words(written: str, spoken: str) -> None:
    assert verbalize(written) == Verbalized(written, spoken)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("not_khmer", "There are 12 of them, បាទ"),
        ("not_khmer", "១២"),
        ("leading_zero", "ទូរសព្ទ 012888999"),
        ("ambiguous_number", "តម្លៃ 1.500"),
        ("ambiguous_number", "តម្លៃ ១ ៥០០រៀល"),
        ("too_large", "លេខ " + "9" * 5_000),
        ("impossible_date", "ប្រជុំនៅ 31/02/2020"),
        ("other_notation", "ក្រដាស A4"),
        ("other_notation", "ម៉ោង 7:45"),
        ("other_notation", "កំណែ 7.2.1"),
        ("other_notation", "ឆ្នាំ ២០១០-២០១៥"),
        ("other_notation", "ខ្មែរ-៥"),
        ("other_notation", "ប្រាក់ $5៛"),
        ("other_notation", "ប្រាក់ 12,34,5"),
    ],
)
def test_other_digits_are_refused_with_a_reason(rule: str, sentence: str) -> None:
    refused = verbalize(sentence)
    assert (refused.written, refused.spoken, refused.rule) == (sentence, None, rule)
    assert refused.reason
    assert len(refused.reason) < 200


def test_the_reason_names_the_place() -> None:
    assert verbalize("សូមបោះពុម្ពលើក្រដាស A4 ពីរសន្លឹក").reason == (
        "'A4' at character 20 is neither a plain number nor an amount nor a full date"
    )


def test_a_text_gives_its_sentences_that_hold_digits() -> None:
    text = "ផ្ទះ ២ ខ្នង គោ ក្របី ។ល។ ៣ ក្បាល។ គ្មានអ្វីទេ។\nបន្ទប់ B12៕ នៅ​សល់ ៩!"
    assert [found[:2] for found in verbalized_sentences(text) if found.spoken] == [
        ("ផ្ទះ ២ ខ្នង គោ ក្របី ។ល។ ៣ ក្បាល។", "ផ្ទះ ពីរ ខ្នង គោ ក្របី ។ល។ បី ក្បាល។"),
        ("នៅ​សល់ ៩!", "នៅ​សល់ ប្រាំបួន!"),
    ]
    assert [(s.written, s.rule) for s in verbalized_sentences(text) if s.rule] == [("បន្ទប់ B12៕", "other_notation")]


@pytest.mark.parametrize(
    ("spoken", "written"),
    [
        ("មានសិស្សសាមសិបប្រាំពិលនាក់", "មានសិស្ស៣៧នាក់"),
        ("ឆ្នាំ ពីរ ពាន់ ម្ភៃ ប្រាំមួយ មក", "ឆ្នាំ ២០២៦ មក"),
        ("អាយុ ហុក សិប បី ឆ្នាំ", "អាយុ ៦៣ ឆ្នាំ"),
        ("ថ្ងៃទីបី ខែមេសា", "ថ្ងៃទី៣ ខែមេសា"),
        ("ថ្នាក់ទី ប្រាំ", "ថ្នាក់ទី ៥"),
        ("កូនបីនាក់ ឆ្កែមួយ", "កូនបីនាក់ ឆ្កែមួយ"),  # single words
        ("បីបួនថ្ងៃ", "បីបួនថ្ងៃ"),  # three or four
        ("ហាសិបភាគរយ", "ហាសិបភាគរយ"),
        ("អស់ពីររយៈពេល", "អស់ពីររយៈពេល"),  # the last word is another one
    ],
)
def test_number_words_become_digits_where_they_can_mean_nothing_else(spoken: str, written: str) -> None:
    assert words_to_digits(spoken) == written


@given(st.integers(0, LARGEST) | st.integers(0, 9_999))
def test_a_number_of_several_words_comes_back(number: int) -> None:
    written = f"លេខទី{to_khmer_digits(number)} គឺជាលេខ"
    spoken = verbalize(written).spoken
    assert spoken == f"លេខទី{number_to_words(number, pronounced=True)} គឺជាលេខ"
    assert number == 0 or words_to_digits(spoken) == written


awkward = st.lists(
    st.sampled_from([*"0129១២៣០.,:/-−%៛$A ។\n()ទី៉្\u200b\ud800", "ថ្ងៃទី", "មួយ", "រយ", "ពាន់", "12/03/2023"])
).map("".join)


@given(st.text() | awkward)
def test_any_text_is_either_put_in_words_or_refused(text: str) -> None:
    for sentence in verbalized_sentences(text):
        assert (sentence.spoken is None) == (sentence.rule is not None) == (sentence.reason is not None)
        if sentence.spoken is not None:
            assert not any(digit in sentence.spoken for digit in "0123456789០១២៣៤៥៦៧៨៩")


@given(st.text() | awkward)
def test_digits_for_words_never_fail_and_are_final(text: str) -> None:
    once = words_to_digits(text)
    assert words_to_digits(once) == once


@pytest.mark.parametrize("piece", ["a", "1", "1.", "1,000", "មួយ", "មួយ ", "ប្រាំ", "%", "។", "។ល", "-", "១ "])
def test_a_flood_is_one_text_among_others(piece: str) -> None:
    """With an algorithm that is quadratic in the length of a text, this takes minutes."""
    flood = "ក " + piece * (100_000 // len(piece))
    assert all(sentence.written for sentence in verbalized_sentences(flood))
    assert words_to_digits(flood)
