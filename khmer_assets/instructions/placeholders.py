"""What a translation must keep as it is: code, addresses, numbers and names of things, behind placeholders.

A placeholder is a number in double brackets, [[1]]: signs that translation models have learned to copy. Names of things
are words with digits, underscores or capitals inside (GPT-4, max_length, iPhone); names of people and places are left
to the model, which writes them in Khmer.
"""

import re

from khmer_assets.khmer.numbers import to_latin_digits

_KEPT = re.compile(
    r"`[^`\n]+`"  # code
    r"|https?://[^\s<>\"')\]]{1,500}(?<![.,;:!?])|\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}"  # addresses
    r"|</?[a-z][^<>\n]{0,80}>|\{[\w.]{1,40}\}"  # marks and slots
    r"|\b[A-Za-z][\w-]{0,60}[\d_][\w-]{0,60}|\b[a-z]{1,60}[A-Z]\w{0,60}|\b[A-Z]{2,}\b"  # names of things
    r"|\d+(?:[.,:/]\d+)*%?"  # numbers
)
_PLACEHOLDER = re.compile(r"\[\s*\[\s*([0-9០-៩]+)\s*\]\s*\]")


def protected(text: str) -> tuple[str, list[str]]:
    """The text with placeholders, and what stands behind them.

    >>> protected("Call `f(x)` 3 times with max_length.")
    ('Call [[1]] [[2]] times with [[3]].', ['`f(x)`', '3', 'max_length'])
    """
    kept: list[str] = []

    def put(match: re.Match[str]) -> str:
        kept.append(match[0])
        return f"[[{len(kept)}]]"

    return _KEPT.sub(put, text), kept


def restored(text: str, kept: list[str]) -> tuple[str, int]:
    """The text with what the placeholders stand for, and how many of them it has lost, doubled or made up.

    >>> restored("ហៅ [[1]] ចំនួន [[ ២ ]] ដង", ["`f(x)`", "3"])
    ('ហៅ `f(x)` ចំនួន 3 ដង', 0)
    """
    found = [int(to_latin_digits(number)) for number in _PLACEHOLDER.findall(text)]
    wanted = range(1, len(kept) + 1)
    wrong = sum(found.count(number) != 1 for number in wanted) + sum(number not in wanted for number in found)
    if wrong:
        return text, wrong
    return _PLACEHOLDER.sub(lambda match: kept[int(to_latin_digits(match[1])) - 1], text), 0


def bare_of_placeholders(text: str) -> str:
    """The text without its placeholders."""
    return _PLACEHOLDER.sub(" ", text)
