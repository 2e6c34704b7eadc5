"""Personal data in texts, replaced by masks: <phone>, <email>, <id>. Names and addresses are not looked for.

What is masked, with Latin or Khmer digits, grouped by spaces, dots or hyphens or not at all:

- <email>: e-mail addresses;
- <phone>: Cambodian numbers of nine or ten digits (0xx xxx xxx) or with 855 before them, international numbers with a
  plus, and seven and more digits after a word such as "Tel:";
- <id>: payment cards of 13 to 19 digits with a right check digit, and 6 to 19 digits after a word for an identity
  card, a passport or an account.

Years, dates, prices and numbers of articles stay: they have fewer digits, or no zero in front, or commas.
"""

import re

import polars as pl

MASKS = ("<email>", "<phone>", "<id>")

_DIGIT, _NOT_ZERO, _GAP = "[0-9០-៩]", "[1-9១-៩]", "[ .-]?"
_ZERO, _COUNTRY = "[0០]", "[8៨][5៥][5៥]"
_NO_NUMBER_BEFORE, _NO_NUMBER_AFTER = r"(?<![\w+])(?<![0-9០-៩][.,])", "(?![0-9០-៩])"
_PHONE_WORDS = r"ទូរស័ព្ទ|ទូរសព្ទ|ទូរសារ|\b(?:tel|phone|telephone|mobile|hotline|fax|whatsapp)\b"
_ID_WORDS = (
    "អត្តសញ្ញាណប័ណ្ណ|អត្តសញ្ញាណ|លិខិតឆ្លងដែន|ប័ណ្ណសម្គាល់ខ្លួន|គណនី|"
    r"\b(?:ID|identity card|ID card|passport|account|card|IBAN)\b"
)

_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_])", re.ASCII)
_PHONE = re.compile(
    f"{_NO_NUMBER_BEFORE}(?:"
    # 0xx xxx xxx, (0xx) xxx xxxx
    rf"\(?{_ZERO}{_NOT_ZERO}{_DIGIT}\)?(?:{_GAP}{_DIGIT}){{6,7}}"
    # +855 xx xxx xxx, 00855..., (855) (0)xx xxx xxx
    rf"|(?:\+|{_ZERO}{_ZERO})?\(?\+?{_COUNTRY}\)?{_GAP}(?:\({_ZERO}\)|{_ZERO})?{_GAP}{_NOT_ZERO}"
    rf"(?:{_GAP}{_DIGIT}){{7,8}}"
    # +1 415 555 2671
    rf"|\+{_NOT_ZERO}(?:[ .-]?\(?{_DIGIT}\)?){{9,14}}"
    f"){_NO_NUMBER_AFTER}"
)
_NAMED_PHONE = re.compile(
    rf"((?:{_PHONE_WORDS})(?:លេខ)?\.?[ ]?[:៖][ ]?)(?:{_DIGIT}{_GAP}){{6,13}}{_DIGIT}{_NO_NUMBER_AFTER}", re.IGNORECASE
)
_NAMED_ID = re.compile(
    rf"((?:{_ID_WORDS})(?:[^0-9០-៩\n]{{0,20}}[:៖#]|[ ]?(?:លេខ|number|no\.?))?[ ]?)"
    rf"([A-Z]{{0,2}}(?:{_DIGIT}[ -]?){{5,18}}{_DIGIT}(?:\({_DIGIT}{{1,2}}\))?){_NO_NUMBER_AFTER}",
    re.IGNORECASE,
)
_DATE_OR_YEARS = re.compile(r"(?:19|20)\d\d[ -](?:19|20)\d\d|(?:19|20)\d\d[ -]\d\d?[ -]\d\d?|\d\d?[ -]\d\d?[ -]\d{4}")
_CARD = re.compile(
    rf"{_NO_NUMBER_BEFORE}(?:{_DIGIT}{{13,19}}|(?:{_DIGIT}{{4}}[ -]){{3}}{_DIGIT}{{4}}|{_DIGIT}{{4}}[ -]{_DIGIT}{{6}}"
    rf"[ -]{_DIGIT}{{5}}){_NO_NUMBER_AFTER}"
)

# What a text must have for any of these to match: searched in all texts by polars, which is fast.
_CANDIDATE = rf"[\w.%+-]@[\w-]|{_DIGIT}(?:[ .()-]{{0,3}}{_DIGIT}){{5}}"


def mask(text: str) -> str:
    """The text with its personal data masked.

    >>> mask("ទូរស័ព្ទ ០១២ ៣៤៥ ៦៧៨ ឬ someone@example.org ឆ្នាំ ២០២៤")
    'ទូរស័ព្ទ <phone> ឬ <email> ឆ្នាំ ២០២៤'
    """
    text = _EMAIL.sub("<email>", text)
    text = _NAMED_ID.sub(lambda found: found[0] if _is_date(found[2]) else f"{found[1]}<id>", text)
    text = _CARD.sub(lambda found: "<id>" if _is_card(found[0]) else found[0], text)
    text = _PHONE.sub("<phone>", text)
    return _NAMED_PHONE.sub(r"\1<phone>", text)


def mask_texts(texts: pl.Series) -> pl.Series:
    """`mask` for every text of a series of strings."""
    candidates = texts.str.contains(_CANDIDATE).fill_null(False).arg_true()
    if not candidates.len():
        return texts
    return texts.clone().scatter(candidates, [mask(text) for text in texts.gather(candidates)])


def masks(text: pl.Expr) -> list[pl.Expr]:
    """How often each mask stands in the texts of a column, one expression a mask, named without its signs."""
    return [text.str.count_matches(mask, literal=True).alias(mask.strip("<>")) for mask in MASKS]


def _is_date(number: str) -> bool:
    latin = "".join(str(int(sign)) if sign.isdecimal() else sign for sign in number)
    return _DATE_OR_YEARS.fullmatch(latin) is not None


def _is_card(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1) and the first a card network's."""
    digits = [int(sign) for sign in number if sign.isdecimal()]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return digits[0] in (2, 3, 4, 5, 6) and (sum(digits[::-2]) + sum(doubled)) % 10 == 0
