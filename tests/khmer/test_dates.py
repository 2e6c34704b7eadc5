"""Dates in Khmer words."""

import re
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.khmer.dates import ERAS, MONTHS, WEEKDAYS, PartialDate, date_to_words, words_to_date

GOLD = Path(__file__).parents[3] / "shared" / "data" / "verbalised_date.tsv"


def gold_rows() -> list[tuple[PartialDate, str]]:
    """Each date of the table with its words. Months and weekdays stand there as numbers or as names."""
    rows = []
    for line in GOLD.read_text(encoding="utf-8").splitlines():
        if not line.startswith("DATE_MARKUP"):
            continue
        _, markup, words = line.split("\t")
        fields = dict(field.split(":") for field in markup.strip("|").split("|")[1:])
        month = re.sub("^មិនា$", "មីនា", fields.get("month", ""))
        numbered = month.startswith("ខែ")
        month = month.removeprefix("ខែ").strip()
        weekday = fields.get("weekday", "")
        rows.append(
            (
                PartialDate(
                    day=int(fields["day"]) if "day" in fields else None,
                    month=MONTHS.index(month) + 1 if month in MONTHS else int(month) if month else None,
                    year=int(fields["year"]) if "year" in fields else None,
                    weekday=WEEKDAYS.index(weekday) + 1 if weekday in WEEKDAYS else int(weekday) if weekday else None,
                    era=fields["era"].replace(" ", "") if "era" in fields else None,
                    numbered_month=numbered,
                ),
                words.replace(" ", ""),
            )
        )
    return rows


@pytest.mark.skipif(not GOLD.exists(), reason="the gold table is not on this machine")
def test_dates_agree_with_the_gold_table_in_both_directions() -> None:
    rows = gold_rows()
    assert len(rows) > 30
    assert [day for day, words in rows if words_to_date(words) != day] == []
    # The table's spelling of March is read, but not written.
    written = [
        (date_to_words(day, pronounced=True).replace(" ", ""), words.replace("មិនា", "មីនា")) for day, words in rows
    ]
    assert [pair for pair in written if pair[0] != pair[1]] == []


@pytest.mark.parametrize(
    ("day", "words"),
    [
        (PartialDate(9, 11, 1953), "ប្រាំបួន ខែវិច្ឆិកា ឆ្នាំមួយពាន់ប្រាំបួនរយហាសិបបី"),
        (PartialDate(9, 11, weekday=1), "ថ្ងៃចន្ទ ទីប្រាំបួន ខែវិច្ឆិកា"),
        (PartialDate(21), "ថ្ងៃទីម្ភៃមួយ"),
        (PartialDate(month=2), "ខែកុម្ភៈ"),
        (PartialDate(5, 2, numbered_month=True), "ប្រាំ ខែពីរ"),
        (PartialDate(year=2569, era="នៃពុទ្ធសករាជ"), "ឆ្នាំពីរពាន់ប្រាំរយហុកសិបប្រាំបួននៃពុទ្ធសករាជ"),
    ],
)
def test_a_date_is_said_as_far_as_it_is_known(day: PartialDate, words: str) -> None:
    assert date_to_words(day) == words
    assert words_to_date(words) == day


@given(st.dates(), st.booleans())
def test_the_words_of_any_day_name_it(day: date, pronounced: bool) -> None:
    partial = PartialDate(day.day, day.month, day.year, weekday=day.isoweekday())
    assert words_to_date(date_to_words(partial, pronounced=pronounced)) == partial


@given(
    day=st.none() | st.integers(1, 31),
    month=st.integers(1, 12),
    year=st.integers(0, 9999),
    weekday=st.none() | st.integers(1, 7),
    era=st.none() | st.sampled_from(ERAS).map("មុន{}".format),
    numbered_month=st.booleans(),
)
def test_the_words_of_any_part_of_a_date_name_it(**parts: object) -> None:
    partial = PartialDate(**parts)  # type: ignore[arg-type]
    assert words_to_date(date_to_words(partial)) == partial


@pytest.mark.parametrize("words", ["ថ្ងៃទី ៩ ខែវិច្ឆិកា ឆ្នាំ1953", "៩ ខែវិច្ឆិកា ឆ្នាំ១៩៥៣", "ទី9 ខែវិច្ឆិកាឆ្នាំ​១៩៥៣"])
def test_a_date_in_digits_is_read_too(words: str) -> None:
    assert words_to_date(words) == PartialDate(9, 11, 1953)


@pytest.mark.parametrize(
    "words", ["", "ថ្ងៃ", "ប្រាំបួន", "១៩៥៣", "ថ្ងៃទី៩ ខែផ្កា ឆ្នាំ១៩៥៣", "ថ្ងៃទី៣២", "ខែ១៣", "ថ្ងៃទីប្រាំប្រាំ", "ឆ្នាំ" + "៩" * 9]
)
def test_other_words_name_no_date(words: str) -> None:
    assert words_to_date(words) is None


@given(
    st.text() | st.lists(st.sampled_from(["ថ្ងៃ", "ទី", "៩", "មួយ", "ខែ", "មករា", "ឆ្នាំ", "រយ", "នៃ", *ERAS])).map("".join)
)
def test_any_text_may_be_asked(text: str) -> None:
    found = words_to_date(text)
    assert found is None or words_to_date(date_to_words(found)) == found


def test_a_day_that_no_month_has_is_refused() -> None:
    with pytest.raises(ValueError, match="day is 32; expected 1 to 31"):
        PartialDate(32)
