"""Sentences in two forms: numbers in digits, as they are written, and in words, as they are spoken.

What belongs here: finding the numbers of a running text, and saying why one has no words. The words of a number or a
date are those of `numbers` and `dates`, seven as it is pronounced.

A sentence is given in words only when all of its digits are plain numbers, percentages, amounts of money or dates with
day, month and year (in this order, or ISO 8601). Otherwise a rule says why not:

| rule | the sentence holds |
|---|---|
| not_khmer | more Latin letters than Khmer ones, or no letters |
| leading_zero | digits that begin with a zero, such as a telephone number's; 03 is three |
| ambiguous_number | one point or space before three digits: 1.500 is one and a half, or one thousand five hundred |
| too_large | more than 15 digits |
| impossible_date | what looks like a date, but is none in the order day, month, year |
| other_notation | digits in anything else: a range, a time, a version, a name such as A4 |
"""

import re
from collections.abc import Iterator
from datetime import date
from typing import NamedTuple

from khmer_assets.khmer.dates import PartialDate, date_to_words
from khmer_assets.khmer.numbers import (
    COUNTING_WORD,
    LARGEST,
    number_to_words,
    to_khmer_digits,
    to_latin_digits,
    words_to_number,
)
from khmer_assets.khmer.script import dominant_script


class Verbalized(NamedTuple):
    """A sentence with its numbers in digits, and in words; or, where `spoken` is None, the rule and reason why not."""

    written: str
    spoken: str | None
    rule: str | None = None
    reason: str | None = None


def verbalized_sentences(text: str) -> Iterator[Verbalized]:
    """Every sentence of `text` that holds digits of either script, in words or with the reason why not.

    >>> [(found.written, found.spoken) for found in verbalized_sentences("សួស្តី។ គាត់មានគោ១២ក្បាល។")]
    [('គាត់មានគោ១២ក្បាល។', 'គាត់មានគោដប់ពីរក្បាល។')]
    """
    for match in _SENTENCE.finditer(text):
        if _DIGIT.search(sentence := match[0].strip()):
            yield verbalize(sentence)


def verbalize(sentence: str) -> Verbalized:
    """The sentence in words; one without digits comes back as it is.

    >>> verbalize("តម្លៃឡើង ៥% នៅថ្ងៃទី១២ ខែមីនា ឆ្នាំ២០២៣").spoken
    'តម្លៃឡើង ប្រាំភាគរយ នៅថ្ងៃទីដប់ពីរ ខែមីនា ឆ្នាំពីរពាន់ម្ភៃបី'
    """
    if _DIGIT.search(sentence) and dominant_script(sentence) != "Khmr":
        return Verbalized(sentence, None, "not_khmer", "it has no letters, or more Latin than Khmer ones")
    if spaced := _SPACED_THOUSANDS.search(sentence):
        reason = f"{spaced[0]!r} at character {spaced.start()} may be one number or two"
        return Verbalized(sentence, None, "ambiguous_number", reason)
    parts: list[str] = []
    written = 0
    for run in _RUN.finditer(sentence):
        if not _DIGIT.search(run[0]):
            continue
        notation = run[0].lstrip(_PUNCTUATION).rstrip(_PUNCTUATION + "-")
        start = run.start() + len(run[0]) - len(run[0].lstrip(_PUNCTUATION))
        try:
            words = _in_words(to_latin_digits(notation), sentence[max(0, start - len(_DAY)) : start])
        except _NoWordsError as error:
            shown = notation if len(notation) <= 40 else notation[:40] + "..."
            return Verbalized(sentence, None, error.rule, f"{shown!r} at character {start} {error}")
        parts += sentence[written:start], words
        written = start + len(notation)
    return Verbalized(sentence, "".join(parts) + sentence[written:])


def words_to_digits(sentence: str) -> str:
    """The sentence with numbers in Khmer digits, where the words cannot mean anything else.

    These are numbers of at least two words in their standard order, and ordinals. A single word stays: "one" is also
    an article, and "three" begins other words.

    >>> words_to_digits("ថ្ងៃទីប្រាំ មានមនុស្សម្ភៃបួននាក់ និងឆ្កែមួយ")
    'ថ្ងៃទី៥ មានមនុស្ស២៤នាក់ និងឆ្កែមួយ'
    """

    def digits(run: re.Match[str]) -> str:
        ordinal = sentence.endswith((_ORDINAL, _ORDINAL + " "), 0, run.start())
        number = words_to_number(run[0])
        if number is None or not (ordinal or run["further"]):
            return run[0]
        return to_khmer_digits(number)

    return _WORDS.sub(digits, sentence)


# Sentences end with a khan or a line; ។ល។ means "and so on".
_SENTENCE = re.compile("(?:។ល។|[^។៕!?\n])+[។៕!?]*")
_D = "[0-9\u17e0-\u17e9]"
_DIGIT = re.compile(_D)
# What surrounds digits without a space or Khmer letter between belongs to them. U+17DB is the riel.
_BESIDE_DIGITS = "[^\\s\u200b\u1780-\u17da\u17dc\u17dd()\\[\\]{}<>«»“”‘’\"'`!?;…|]"
_RUN = re.compile(f"{_BESIDE_DIGITS}+(?: ?[%៛$](?!{_BESIDE_DIGITS}))?")
_SPACED_THOUSANDS = re.compile(f"(?<!{_BESIDE_DIGITS}){_D}{{1,3}} {_D}{{3}}(?!{_BESIDE_DIGITS})")
_PUNCTUATION = ".,:/"
_ORDINAL, _DAY = "ទី", "ថ្ងៃទី"
# All the words of a run or none, and no word that goes on with a mark, for then it is another one. Who separates words
# with spaces may separate "six" and "ten" of sixty.
_WORD = COUNTING_WORD.replace("សិប", "[ \u200b]?សិប")
_WORDS = re.compile(f"(?<!\u17d2)(?>{_WORD}(?P<further>(?:[ \u200b]?{_WORD})++)?)(?![\u17b6-\u17d3\u17dd])")

_NUMBER = re.compile(
    "(?P<sign>[-\u2212])?(?P<dollar>[$])?"
    "(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![,0-9])|[1-9][0-9]{0,2}(?:[.][0-9]{3}){2,}(?![.0-9])|[0-9]+)"
    "(?:(?P<mark>[.,])(?P<fraction>[0-9]+))?(?: ?(?P<unit>[%៛$]))?"
)
_DAY_FIRST = re.compile("(?P<day>[0-9]{1,2})([/.-])(?P<month>[0-9]{1,2})\\2(?P<year>[0-9]{4})")
_YEAR_FIRST = re.compile("(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})")
_MARKS = {".": "ចុច", ",": "ក្បៀស"}
_UNITS = {"%": "ភាគរយ", "៛": "រៀល", "$": "ដុល្លារ"}


class _NoWordsError(Exception):
    def __init__(self, rule: str, reason: str):
        super().__init__(reason)
        self.rule = rule


def _in_words(notation: str, before: str) -> str:
    """The words of digits (Latin ones) that stand behind `before`. Raises `_NoWordsError`."""
    if match := _DAY_FIRST.fullmatch(notation) or _YEAR_FIRST.fullmatch(notation):
        day, month, year = (int(match[name]) for name in ("day", "month", "year"))
        try:
            date(year, month, day)
        except ValueError:
            raise _NoWordsError("impossible_date", "is no date in the order day, month, year") from None
        announced = "" if before.endswith(_ORDINAL) else _ORDINAL if before.endswith("ថ្ងៃ") else _DAY
        return announced + date_to_words(PartialDate(day, month, year), pronounced=True)
    number = _NUMBER.fullmatch(notation)
    # a minus behind a letter is a hyphen; an amount has one currency
    if number is None or (number["sign"] and before[-1:].strip(" (\u200b")) or (number["dollar"] and number["unit"]):
        raise _NoWordsError("other_notation", "is neither a plain number nor an amount nor a full date")
    whole, fraction = re.sub("[.,]", "", number["whole"]), number["fraction"] or ""
    if whole.startswith("0") and len(whole) > 1 and (len(whole) > 2 or whole == "00"):  # 03 is often written for three
        raise _NoWordsError("leading_zero", "begins with a zero, so that it is a code and not a quantity")
    if number["mark"] == "." and len(fraction) == 3 and whole == number["whole"] and len(whole) <= 3 and whole != "0":
        raise _NoWordsError("ambiguous_number", "may hold a decimal point or one between thousands")
    if len(whole) + len(fraction) > len(str(LARGEST)):
        raise _NoWordsError("too_large", f"has more than {len(str(LARGEST))} digits")
    words = number_to_words(int(whole), pronounced=True)
    if number["sign"]:
        words = "ដក" + words
    if fraction:
        words += _MARKS[number["mark"]] + "".join(number_to_words(int(digit), pronounced=True) for digit in fraction)
    return words + _UNITS.get(number["unit"] or number["dollar"] or "", "")
