"""Where sentences begin and end, in Khmer (។ ៕ ? !) and in English (. ? !)."""

import re
from collections.abc import Iterator

# ។ល។ ("and so on") ends nothing; a point ends a sentence before white space alone, and not after a title
_TITLES = "|".join(rf"(?<=\b{title})\." for title in ("Mr", "Ms", "Dr", "St", "No", "vs", "Mrs", "e.g", "i.e"))
_SENTENCE = re.compile(rf"(?:។ល។|[^។៕?!.…\n]|\.(?=\S)|{_TITLES})+(?:[។៕?!.…]+[\"'”’»)]*)?|[។៕?!.…]+")
_WORD = re.compile(r"\w")


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text with their final marks, white space around them aside. A line's end always ends one.

    >>> list(sentences("ខ្ញុំទិញត្រី បន្លែ ។ល។ នៅផ្សារ។ How is Dr. Sok? It costs 1.50 here"))
    ['ខ្ញុំទិញត្រី បន្លែ ។ល។ នៅផ្សារ។', 'How is Dr. Sok?', 'It costs 1.50 here']
    """
    for match in _SENTENCE.finditer(text):
        if _WORD.search(match[0]):
            yield match[0].strip()


def count_sentences(text: str) -> int:
    """How many sentences a text has; marks without a letter or digit are none.

    >>> count_sentences("ដំបូង ដាំទឹកឲ្យពុះ។ បន្ទាប់មក ដាក់តែ! រួចរាល់ហើយ")
    3
    """
    return sum(1 for _ in sentences(text))
