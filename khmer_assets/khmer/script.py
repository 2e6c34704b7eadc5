"""Which script a text is written in, counted by its letters."""

import re
from typing import Literal

Language = Literal["khm", "eng"]  # ISO 639-3


# Letters and the marks that belong to them; neither digits nor punctuation tell a language.
KHMER_LETTERS = r"[\u1780-\u17D3\u17DD]"
LATIN_LETTERS = r"[A-Za-z\u00AA\u00BA\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u024F]"

_KHMER = re.compile(KHMER_LETTERS)
_LATIN = re.compile(LATIN_LETTERS)


def script_shares(text: str) -> tuple[float, float]:
    """The shares (0 to 1) of Khmer and of Latin among the letters of both; (0, 0) for a text without any.

    >>> script_shares("ភាសា km")
    (0.6666666666666666, 0.3333333333333333)
    """
    khmer, latin = (sum(1 for _ in letters.finditer(text)) for letters in (_KHMER, _LATIN))
    both = khmer + latin
    return (khmer / both, latin / both) if both else (0.0, 0.0)


def dominant_script(text: str) -> str | None:
    """The ISO 15924 code of the script with more letters, "Khmr" or "Latn"; None for a text without either.

    >>> dominant_script("ខ្ញុំប្រើ Linux")
    'Khmr'
    """
    khmer, latin = script_shares(text)
    if not khmer and not latin:
        return None
    return "Khmr" if khmer >= latin else "Latn"
