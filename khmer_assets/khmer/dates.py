"""Dates in Khmer words, in both directions. Dates of any calendar: nothing is computed, only named.

What belongs here: the names of days and months, and pure functions of one date.
"""

import re
from dataclasses import dataclass

from khmer_assets.khmer.numbers import NUMBER_WORDS, number_to_words, to_latin_digits, without_spaces, words_to_number

MONTHS = (
    "មករា", "កុម្ភៈ", "មីនា", "មេសា", "ឧសភា", "មិថុនា", "កក្កដា", "សីហា", "កញ្ញា", "តុលា", "វិច្ឆិកា", "ធ្នូ",
)  # fmt: skip
WEEKDAYS = ("ចន្ទ", "អង្គារ", "ពុធ", "ព្រហស្បតិ៍", "សុក្រ", "សៅរ៍", "អាទិត្យ")
# What follows the year: of which era it is, or before which.
ERAS = ("គ្រិស្តសករាជ", "ពុទ្ធសករាជ", "មហាសករាជ", "ចុល្លសករាជ")

_OTHER_SPELLINGS = {"មិនា": "មីនា"}
_NUMBER = f"[0-9\u17e0-\u17e9]{{1,4}}|{NUMBER_WORDS}"
_DATE = re.compile(
    f"(?:ថ្ងៃ(?P<weekday>{'|'.join(WEEKDAYS)})?)?(?:(?P<day_word>ទី)?(?P<day>{_NUMBER}))?"
    f"(?:ខែ(?:(?P<month>{'|'.join([*MONTHS, *_OTHER_SPELLINGS])})|(?P<numbered_month>{_NUMBER})))?"
    f"(?:ឆ្នាំ(?P<year>{_NUMBER})(?P<era>(?:នៃ|មុន)?(?:{'|'.join(ERAS)}))?)?"
)


@dataclass(frozen=True)
class PartialDate:
    """As much of a date as a text says. Day and month are not checked against each other: calendars differ.

    `day`: 1 to 31. `month`: 1 to 12. `year`: 0 to 9999 as it is written, of the era that `era` names, such as
    "នៃពុទ្ធសករាជ". `weekday`: 1 (Monday) to 7. `numbered_month`: the month goes by its number, not by its name.
    """

    day: int | None = None
    month: int | None = None
    year: int | None = None
    weekday: int | None = None
    era: str | None = None
    numbered_month: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("day", 1, 31), ("month", 1, 12), ("year", 0, 9999), ("weekday", 1, 7)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}; expected {low} to {high}, or None when the text does not say it")


def date_to_words(date: PartialDate, *, pronounced: bool = False) -> str:
    """A date in Khmer words: weekday, day of the month, month, year and era, as far as they are known.

    `pronounced` is that of `number_to_words`.

    >>> date_to_words(PartialDate(14, 4, 2026))
    'ដប់បួន ខែមេសា ឆ្នាំពីរពាន់ម្ភៃប្រាំមួយ'
    >>> date_to_words(PartialDate(14, 4, weekday=2))
    'ថ្ងៃអង្គារ ទីដប់បួន ខែមេសា'
    """
    parts = []
    if date.weekday is not None:
        parts.append(f"ថ្ងៃ{WEEKDAYS[date.weekday - 1]}")
    if date.day is not None:
        # A day that stands alone is announced as one; before its month it needs no announcement.
        announced = "ទី" if date.weekday is not None else "ថ្ងៃទី" if date.month is None else ""
        parts.append(announced + number_to_words(date.day, pronounced=pronounced))
    if date.month is not None:
        number = number_to_words(date.month, pronounced=pronounced)
        parts.append("ខែ" + (number if date.numbered_month else MONTHS[date.month - 1]))
    if date.year is not None:
        parts.append("ឆ្នាំ" + number_to_words(date.year, pronounced=pronounced) + (date.era or ""))
    return " ".join(parts)


def words_to_date(words: str) -> PartialDate | None:
    """The date that `date_to_words` wrote; spaces do not matter, and the numbers may be in digits of either script.

    None for anything else, a number alone among it: that may count anything.

    >>> words_to_date("ថ្ងៃទី១៤ ខែមេសា ឆ្នាំ២០២៦")
    PartialDate(day=14, month=4, year=2026, weekday=None, era=None, numbered_month=False)
    """
    match = _DATE.fullmatch(without_spaces(words))
    if match is None or not (
        match["weekday"] or match["day_word"] or match["month"] or match["numbered_month"] or match["year"]
    ):
        return None
    month = _OTHER_SPELLINGS.get(match["month"], match["month"])
    numbers = {name: _number(match[name]) for name in ("day", "numbered_month", "year") if match[name]}
    if None in numbers.values():
        return None
    try:
        return PartialDate(
            day=numbers.get("day"),
            month=MONTHS.index(month) + 1 if month else numbers.get("numbered_month"),
            year=numbers.get("year"),
            weekday=WEEKDAYS.index(match["weekday"]) + 1 if match["weekday"] else None,
            era=match["era"],
            numbered_month=bool(match["numbered_month"]),
        )
    except ValueError:  # a number that no day, month or year has
        return None


def _number(text: str) -> int | None:
    digits = to_latin_digits(text)
    return int(digits) if digits.isdecimal() else words_to_number(text)
