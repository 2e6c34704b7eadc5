"""Personal data are masked; numbers that tell nothing about a person stay."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.corpus.personal_data import mask, mask_texts, masks


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("012 345 678", "<phone>"),
        ("ទូរស័ព្ទ៖ 012345678, 097 123 4567", "ទូរស័ព្ទ៖ <phone>, <phone>"),
        ("012 345 678/099 123 456", "<phone>/<phone>"),
        ("០១២ ៣៤៥ ៦៧៨។", "<phone>។"),
        ("(023) 880 880", "<phone>"),
        ("+855 12 345 678", "<phone>"),
        ("+៨៥៥ ១២ ៣៤៥ ៦៧៨", "<phone>"),
        ("(855) 12-345-678", "<phone>"),
        ("+855 (0)12 345 678", "<phone>"),
        ("0085512345678", "<phone>"),
        ("call +1 415 555 2671 now", "call <phone> now"),
        ("Tel: 23 880 880", "Tel: <phone>"),
        ("sok.dara@example.org, a_b@mail.example.com.", "<email>, <email>."),
        ("អត្តសញ្ញាណប័ណ្ណលេខ ០១០១២៣៤៥៦", "អត្តសញ្ញាណប័ណ្ណលេខ <id>"),
        ("លិខិតឆ្លងដែន N01234567", "លិខិតឆ្លងដែន <id>"),
        ("Passport no. N1234567", "Passport no. <id>"),
        ("គណនីធនាគារ៖ 000 123 456", "គណនីធនាគារ៖ <id>"),
        ("4111 1111 1111 1111", "<id>"),
    ],
)
def test_masked(text, masked):
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "ឆ្នាំ ២០១៩ ២០២០ ២០២១",
        "2019 2020 2021 2022",
        "account 2019-2020",
        "ថ្ងៃទី ០១.០២.២០២០",
        "01-02-2020, 01/02/2020, 2020-01-02",
        "01 02 2020 12:30",
        "1,000,000 រៀល",
        "10 000 000 រៀល",
        "១២៣.៤៥៦.៧៨៩ នាក់",
        "គណនីមានទឹកប្រាក់ ១០០ ០០០ ០០០ រៀល",
        "account balance 1 000 000 USD",
        "មាត្រា ១២៣៤",
        "លេខ 0123/45",
        "0.123456789",
        "3.141592653589793",
        "192.168.100.200",
        "1 2 3 4 5 6 7 8 9 10 11 12 13",
        "4111 1111 1111 1112",
        "ISBN 978-99963-0-123-4",
        "user@host",
        "@someone",
    ],
)
def test_not_masked(text):
    assert mask(text) == text


def test_masks_are_counted():
    texts = pl.DataFrame({"text": mask_texts(pl.Series(["012 345 678 ឬ 011 222 333", "a@example.org", "គ្មាន"]))})
    assert texts.select(masks(pl.col("text"))).to_dicts() == [
        {"email": 0, "phone": 2, "id": 0},
        {"email": 1, "phone": 0, "id": 0},
        {"email": 0, "phone": 0, "id": 0},
    ]


NUMBERS = st.text(st.sampled_from("0128855+() .-/@aN០៥៨:៖"), max_size=60)


@given(st.lists(st.one_of(st.text(), NUMBERS), max_size=5))
def test_all_texts_at_once_are_masked_as_each_alone(texts):
    assert mask_texts(pl.Series(texts, dtype=pl.String)).to_list() == [mask(text) for text in texts]


@given(NUMBERS)
def test_what_is_masked_has_nothing_more_to_mask(text):
    assert mask(mask(text)) == mask(text)
