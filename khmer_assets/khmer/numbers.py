"""Numbers in Khmer: digits, number words and dates, in both directions.

What belongs here: pure functions of text, integers and dates. Where such text is used is decided elsewhere.
"""

import re
from datetime import date

KHMER_DIGITS = "\u17e0\u17e1\u17e2\u17e3\u17e4\u17e5\u17e6\u17e7\u17e8\u17e9"
LATIN_DIGITS = "0123456789"
MONTHS = (
    "មករា", "កុម្ភៈ", "មីនា", "មេសា", "ឧសភា", "មិថុនា", "កក្កដា", "សីហា", "កញ្ញា", "តុលា", "វិច្ឆិកា", "ធ្នូ",
)  # fmt: skip
WEEKDAYS = ("ចន្ទ", "អង្គារ", "ពុធ", "ព្រហស្បតិ៍", "សុក្រ", "សៅរ៍", "អាទិត្យ")
LARGEST = 10**12 - 1

_ZERO = "សូន្យ"
_MINUS = "ដក"
_ONES = ("", "មួយ", "ពីរ", "បី", "បួន", "ប្រាំ", "ប្រាំមួយ", "ប្រាំពីរ", "ប្រាំបី", "ប្រាំបួន")
_TENS = ("", "ដប់", "ម្ភៃ", "សាមសិប", "សែសិប", "ហាសិប", "ហុកសិប", "ចិតសិប", "ប៉ែតសិប", "កៅសិប")
# Khmer has a word for every power of ten up to a million; above it, numbers of up to three digits are counted
_POWERS = ((10**9, "ប៊ីលាន"), (10**6, "លាន"), (10**5, "សែន"), (10**4, "ម៉ឺន"), (10**3, "ពាន់"), (10**2, "រយ"))
_VALUES = {
    **{word: value for value, word in enumerate(_ONES) if word},
    **{word: 10 * value for value, word in enumerate(_TENS) if word},
    **{word: value for value, word in _POWERS},
    "ប្រាំពិល": 7,  # as it is pronounced, and often written
}
# the longest word first, because "eight" begins with "five"
_WORD = re.compile("|".join(sorted(_VALUES, key=len, reverse=True)))
_DATE = re.compile(r"ថ្ងៃទី(?P<day>.+?)ខែ(?P<month>.+?)ឆ្នាំ(?P<year>.+)")

_TO_KHMER = str.maketrans(LATIN_DIGITS, KHMER_DIGITS)
_TO_LATIN = str.maketrans(KHMER_DIGITS, LATIN_DIGITS)


def to_khmer_digits(text: str | int) -> str:
    """The text with Latin digits replaced by Khmer ones; everything else stays.

    >>> to_khmer_digits(2026)
    '២០២៦'
    """
    return str(text).translate(_TO_KHMER)


def to_latin_digits(text: str) -> str:
    """The text with Khmer digits replaced by Latin ones; everything else stays.

    >>> to_latin_digits("ឆ្នាំ២០២៦")
    'ឆ្នាំ2026'
    """
    return text.translate(_TO_LATIN)


def number_to_words(number: int) -> str:
    """An integer in Khmer words, written without spaces as usual.

    Raises `ValueError` beyond 12 digits.

    >>> number_to_words(1825)
    'មួយពាន់ប្រាំបីរយម្ភៃប្រាំ'
    """
    if abs(number) > LARGEST:
        raise ValueError(f"{number} has more than 12 digits; numbers from -{LARGEST} to {LARGEST} have words here")
    if number < 0:
        return _MINUS + number_to_words(-number)
    return _positive(number) or _ZERO


def words_to_number(words: str) -> int:
    """The integer that Khmer number words name; spaces and zero-width spaces between the words do not matter.

    Only the standard order of words is accepted, so that a text that merely holds number words is not misread.
    Raises `ValueError` for anything else.

    >>> words_to_number("មួយ រយ ពីរ")
    102
    """
    given = re.sub(r"[\s\u200b]+", "", words)
    text = given.removeprefix(_MINUS)
    total, counted = 0, 0
    for match in _WORD.finditer(text):
        value = _VALUES[match[0]]
        if value >= 10**6:
            total, counted = total + (counted or 1) * value, 0
        elif value >= 100:
            # the digit just before counts the power: 5 in "thirty thousand ... five hundred"
            digit = counted % 10
            counted += digit * (value - 1)
        else:
            counted += value
    number = total + counted
    standard = _ZERO if number == 0 else _positive(number) if number <= LARGEST else ""
    if text.replace("ប្រាំពិល", "ប្រាំពីរ") != standard:
        raise ValueError(f"{words!r} is not a Khmer number; expected words such as {number_to_words(125)!r}")
    return -number if given != text else number


def date_to_words(day: date) -> str:
    """A date of the Gregorian calendar in Khmer words: day of the month, name of the month, year.

    >>> date_to_words(date(2026, 4, 14))
    'ថ្ងៃទីដប់បួន ខែមេសា ឆ្នាំពីរពាន់ម្ភៃប្រាំមួយ'
    """
    return f"ថ្ងៃទី{number_to_words(day.day)} ខែ{MONTHS[day.month - 1]} ឆ្នាំ{number_to_words(day.year)}"


def words_to_date(words: str) -> date:
    """The date that `date_to_words` wrote; spaces do not matter, and the numbers may be in digits of either script.

    Raises `ValueError` for anything else, also for a day that its month does not have.

    >>> words_to_date("ថ្ងៃទី១៤ ខែមេសា ឆ្នាំ២០២៦")
    datetime.date(2026, 4, 14)
    """
    match = _DATE.fullmatch(re.sub(r"[\s\u200b]+", "", words))
    if match is None or match["month"] not in MONTHS:
        raise ValueError(f"{words!r} is not a Khmer date; expected one such as {date_to_words(date(2026, 4, 14))!r}")
    return date(_number(match["year"]), MONTHS.index(match["month"]) + 1, _number(match["day"]))


def _positive(number: int) -> str:
    words = ""
    for value, word in _POWERS:
        count, number = divmod(number, value)
        if count:
            words += _positive(count) + word
    tens, ones = divmod(number, 10)
    return words + _TENS[tens] + _ONES[ones]


def _number(text: str) -> int:
    digits = to_latin_digits(text)
    return int(digits) if digits.isdecimal() else words_to_number(text)
