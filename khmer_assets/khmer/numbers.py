"""Numbers in Khmer: digits and number words, in both directions.

What belongs here: pure functions of one number. Dates stand in `dates`, numbers within sentences in `verbalization`.
"""

import re

KHMER_DIGITS = "\u17e0\u17e1\u17e2\u17e3\u17e4\u17e5\u17e6\u17e7\u17e8\u17e9"
LATIN_DIGITS = "0123456789"
LARGEST = 10**15 - 1

_ZERO = "សូន្យ"
_MINUS = "ដក"
_ONES = ("", "មួយ", "ពីរ", "បី", "បួន", "ប្រាំ", "ប្រាំមួយ", "ប្រាំពីរ", "ប្រាំបី", "ប្រាំបួន")
_TENS = ("", "ដប់", "ម្ភៃ", "សាមសិប", "សែសិប", "ហាសិប", "ហុកសិប", "ចិតសិប", "ប៉ែតសិប", "កៅសិប")
# Khmer has a word for every power of ten up to a million; millions are counted to 999, and billions beyond it
_POWERS = ((10**9, "ប៊ីលាន"), (10**6, "លាន"), (10**5, "សែន"), (10**4, "ម៉ឺន"), (10**3, "ពាន់"), (10**2, "រយ"))
_SEVEN, _SEVEN_AS_PRONOUNCED = "ប្រាំពីរ", "ប្រាំពិល"
_VALUES = {
    **{word: value for value, word in enumerate(_ONES) if word},
    **{word: 10 * value for value, word in enumerate(_TENS) if word},
    **{word: value for value, word in _POWERS},
    _SEVEN_AS_PRONOUNCED: 7,
}
# Patterns of a number's single words (the longest first, because "eight" begins with "five"), and of a number.
COUNTING_WORD = f"(?:{'|'.join(sorted(_VALUES, key=len, reverse=True))})"
NUMBER_WORDS = f"(?:{_ZERO}|{COUNTING_WORD}+)"
_COUNTING_WORD = re.compile(COUNTING_WORD)
_SPACES = re.compile(r"[\s\u200b]+")

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


def number_to_words(number: int, *, pronounced: bool = False) -> str:
    """An integer in Khmer words, written without spaces as usual.

    `pronounced` writes seven as it is said, ប្រាំពិល, as texts made for speech do. Raises `ValueError` beyond 15 digits.

    >>> number_to_words(1825)
    'មួយពាន់ប្រាំបីរយម្ភៃប្រាំ'
    """
    if abs(number) > LARGEST:
        raise ValueError(f"{number} has more than 15 digits; numbers from -{LARGEST} to {LARGEST} have words here")
    words = (_MINUS if number < 0 else "") + (_positive(abs(number)) or _ZERO)
    return words.replace(_SEVEN, _SEVEN_AS_PRONOUNCED) if pronounced else words


def words_to_number(words: str) -> int | None:
    """The integer that Khmer number words name; spaces and zero-width spaces between the words do not matter.

    Only the standard order of words is accepted, so that a text that merely holds number words is not misread.
    None for anything else.

    >>> words_to_number("មួយ រយ ពីរ")
    102
    """
    text = without_spaces(words)
    unsigned = text.removeprefix(_MINUS)
    total, counted = 0, 0
    for match in _COUNTING_WORD.finditer(unsigned):
        value = _VALUES[match[0]]
        if value >= 10**6:
            total, counted = total + (counted or 1) * value, 0
        elif value >= 100:
            # the digit just before counts the power: 5 in "thirty thousand ... five hundred"
            digit = counted % 10
            counted += digit * (value - 1)
        else:
            counted += value
        if total + counted > LARGEST:
            return None
    number = total + counted
    standard = _positive(number) or _ZERO
    if unsigned.replace(_SEVEN_AS_PRONOUNCED, _SEVEN) != standard:
        return None
    return -number if unsigned != text else number


def without_spaces(words: str) -> str:
    """The text without white space and zero-width spaces."""
    return _SPACES.sub("", words)


def _positive(number: int) -> str:
    words = ""
    for value, word in _POWERS:
        count, number = divmod(number, value)
        if count:
            words += _positive(count) + word
    tens, ones = divmod(number, 10)
    return words + _TENS[tens] + _ONES[ones]
