"""What can be counted in a text: its letters by script, its lines, its words and how much of it repeats.

Only numbers; what they say about a document is judged in `filters.py`. The loops are compiled. Places are UTF-16 units
(see `khmer_assets.khmer.words`); counts are characters, of which a pair of surrogates is one.
"""

import re
import unicodedata
from functools import cache

import numpy as np
import polars as pl
from numba import njit
from numpy.typing import NDArray

from khmer_assets.khmer.script import KHMER_LETTERS, LATIN_LETTERS
from khmer_assets.khmer.words import ZERO_WIDTH_SPACE, khmer_words, spaced_words, units

SPACE, KHMER, LATIN, FOREIGN, SYMBOL, LETTER, TERMINAL, TRAILING = (1 << bit for bit in range(8))

TERMINAL_SIGNS = ".!?…។៕៖៙៚。！？‽؟۔"
# Letters and signs that are used with Khmer or Latin ones, or with any.
COMMON = ("KHMER ", "LATIN ", "COMBINING ", "MODIFIER ", "FEMININE ", "MASCULINE ", "VARIATION SELECTOR")

CHARACTERS = ("characters", "khmer", "latin", "foreign", "symbols", "visible", "khmer_lines", "latin_lines", "lines")
TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
WORDS = (
    "words",
    "plain_words",
    "word_length",
    "alphabetic_words",
    "stop_words",
    "hashes",
    "ellipses",
    "line_breaks",
    "duplicate_lines",
    "duplicate_line_characters",
    "punctuated_lines",
    "bullet_lines",
    "ellipsis_lines",
    *(f"top_{n}_grams" for n in TOP_NGRAMS),
    *(f"duplicate_{n}_grams" for n in DUPLICATE_NGRAMS),
)

_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, with its bits well spread
_SHIFT = np.uint64(29)
_NEWLINE, _DOT, _ELLIPSIS, _HASH, _BULLET, _HYPHEN = (ord(sign) for sign in "\n.…#•-")


@cache
def _classes() -> NDArray[np.uint8]:
    """The class of each UTF-16 unit, as a sum of the constants above."""
    khmer, latin = re.compile(KHMER_LETTERS), re.compile(LATIN_LETTERS)
    classes = np.zeros(1 << 16, dtype=np.uint8)
    for code in range(1 << 16):
        sign, category = chr(code), unicodedata.category(chr(code))
        if sign.isspace() or sign == ZERO_WIDTH_SPACE:
            classes[code] = SPACE
        elif khmer.match(sign):
            classes[code] = KHMER
        elif latin.match(sign):
            classes[code] = LATIN
        elif category[0] in "LM":
            classes[code] = 0 if unicodedata.name(sign, "").startswith(COMMON) else FOREIGN
        elif 0xDC00 <= code < 0xE000:
            classes[code] = TRAILING
        elif 0xD840 <= code < 0xD8C0:  # leads to the supplementary ideographs; others mostly to pictures
            classes[code] = FOREIGN
        elif category[0] != "N":
            classes[code] = SYMBOL
        classes[code] |= LETTER * sign.isalpha() | TERMINAL * (sign in TERMINAL_SIGNS)
    return classes


def _joined(texts: list[str]) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """The units of all texts with a line break after each, and where each begins; one place more than texts."""
    text = "\n".join([*texts, ""])
    data = units(text)
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)) + 1
    if data.size > len(text):  # some characters have two units
        sizes = np.fromiter((units(text).size for text in texts), dtype=np.int64, count=len(texts)) + 1
    return data, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def character_measures(texts: list[str]) -> pl.DataFrame:
    """Counts for each text (`CHARACTERS`): all characters; letters that are Khmer, Latin or of another script; symbols
    (neither letter, mark, digit nor space); characters that are not space; lines with letters, and those of them that
    are mostly Khmer or Latin."""
    data, offsets = _joined(texts)
    counted = np.zeros((len(texts), len(CHARACTERS)), dtype=np.int64)
    _count_characters(data, offsets, _classes(), counted)
    return pl.DataFrame(counted, schema=dict.fromkeys(CHARACTERS, pl.Int64))


@njit(cache=True, nogil=True)
def _count_characters(
    data: NDArray[np.uint16], offsets: NDArray[np.int64], classes: NDArray[np.uint8], counted: NDArray[np.int64]
) -> None:
    for number in range(offsets.size - 1):
        characters = khmer = latin = foreign = symbols = spaces = 0
        khmer_lines = latin_lines = lines = 0
        before_khmer = before_latin = before_foreign = 0  # at the beginning of the line
        for place in range(offsets[number], offsets[number + 1]):
            kind = classes[data[place]]
            characters += 1 if kind & TRAILING == 0 else 0
            khmer += 1 if kind & KHMER else 0
            latin += 1 if kind & LATIN else 0
            foreign += 1 if kind & FOREIGN else 0
            symbols += 1 if kind & SYMBOL else 0
            spaces += 1 if kind & SPACE else 0
            if data[place] == _NEWLINE:
                own_khmer, own_latin = khmer - before_khmer, latin - before_latin
                letters = own_khmer + own_latin + foreign - before_foreign
                lines += 1 if letters else 0
                khmer_lines += 1 if 2 * own_khmer > letters else 0
                latin_lines += 1 if 2 * own_latin > letters else 0
                before_khmer, before_latin, before_foreign = khmer, latin, foreign
        row = counted[number]
        row[0], row[1], row[2], row[3], row[4] = characters - 1, khmer, latin, foreign, symbols
        row[5], row[6], row[7], row[8] = characters - spaces, khmer_lines, latin_lines, lines


def word_measures(texts: list[str], khmer: bool, stop_words: tuple[str, ...]) -> pl.DataFrame:
    """What the filters of Gopher and FineWeb measure (`WORDS`), for texts with Khmer words or with spaced ones.

    | column | meaning |
    |---|---|
    | words, plain_words | all words, and those that are not only symbols |
    | word_length | mean length of the plain ones, characters |
    | alphabetic_words | share of the words with a letter in them |
    | stop_words | how many different ones of `stop_words` occur |
    | hashes, ellipses, line_breaks | how many to a word |
    | duplicate_lines, duplicate_line_characters | share of the lines, and of the characters, that repeat a line |
    | punctuated_lines, bullet_lines, ellipsis_lines | share of the lines that end, begin or end so |
    | top_n_grams | share of the characters in the most frequent run of n words |
    | duplicate_n_grams | share of the characters in runs of n words that repeat an earlier one |
    """
    data, offsets = _joined(texts)
    if khmer:
        # khmer-nltk takes line breaks out first, so that a word may go on in the next line; the limits count such words
        breaks = data == _NEWLINE
        unbroken, bounds = data[~breaks], offsets - np.concatenate([[0], np.cumsum(breaks)])[offsets]
        starts, ends = khmer_words(unbroken, bounds)
    else:
        unbroken, bounds = data, offsets
        starts, ends = spaced_words(data)
    wanted = np.array([_word_hash(units(word)) for word in stop_words], dtype=np.uint64)
    measured = np.zeros((len(texts), len(WORDS)), dtype=np.float64)
    _measure_words(data, offsets, unbroken, bounds, starts, ends, _classes(), wanted, measured)
    return pl.DataFrame(measured, schema=dict.fromkeys(WORDS, pl.Float64))


@njit(cache=True, nogil=True)
def _mixed(value: np.uint64) -> np.uint64:
    value *= _FACTOR
    return (value ^ (value >> _SHIFT)) * _FACTOR


@njit(cache=True, nogil=True)
def _word_hash(data: NDArray[np.uint16]) -> np.uint64:
    value = np.uint64(data.size)
    for unit in data:
        value = value * _FACTOR + np.uint64(unit) + np.uint64(1)
    return _mixed(value)


@njit(cache=True, nogil=True)
def _numbered(
    keys: NDArray[np.uint64], count: int, table: NDArray[np.int64], numbers: NDArray[np.int64], seen: NDArray[np.int64]
) -> int:
    """Number equal keys alike, in order of their first occurrence; `seen` counts each. A key of 0 gets no number (-1).

    `table`, of a power of two places, holds the place of a key's first occurrence, or -1; it is left empty.
    """
    mask = np.uint64(table.size - 1)
    different = 0
    for place in range(count):
        key = keys[place]
        if key == 0:
            numbers[place] = -1
            continue
        slot = key & mask
        while table[slot] >= 0 and keys[table[slot]] != key:
            slot = (slot + np.uint64(1)) & mask
        if table[slot] < 0:
            table[slot] = place
            numbers[place] = different
            seen[different] = 1
            different += 1
        else:
            numbers[place] = numbers[table[slot]]
            seen[numbers[place]] += 1
    table[:] = -1
    return different


@njit(cache=True, nogil=True)
def _measure_lines(
    data: NDArray[np.uint16], classes: NDArray[np.uint8], characters: int, row: NDArray[np.float64]
) -> None:
    """The measures of a text that ends with a line break; row[5] to row[12]."""
    breaks = -1
    for unit in data:
        breaks += 1 if unit == _NEWLINE else 0
    room = breaks + 1
    keys, lengths = np.zeros(room, dtype=np.uint64), np.zeros(room, dtype=np.int64)
    punctuated = bullets = trailing_ellipses = filled = hashes = ellipses = dots = 0
    start = 0
    first = last = -1
    value = np.uint64(0)
    for place in range(data.size):
        unit = data[place]
        kind = classes[unit]
        hashes += 1 if unit == _HASH else 0
        dots = dots + 1 if unit == _DOT else 0
        if unit == _ELLIPSIS or dots == 3:
            ellipses += 1
            dots = 0
        if unit != _NEWLINE:
            value = value * _FACTOR + np.uint64(unit) + np.uint64(1)
            if kind & SPACE == 0:
                first = place if first < 0 else first
                last = place
            continue
        if first >= 0:
            keys[filled] = _mixed(value) | np.uint64(1)
            for inside in range(start, place):
                lengths[filled] += 1 if classes[data[inside]] & TRAILING == 0 else 0
            filled += 1
            punctuated += 1 if classes[data[place - 1]] & TERMINAL else 0
            bullets += 1 if data[first] == _BULLET or data[first] == _HYPHEN else 0
            three = last - 2 >= start and data[last] == _DOT and data[last - 1] == _DOT and data[last - 2] == _DOT
            trailing_ellipses += 1 if data[last] == _ELLIPSIS or three else 0
        start, first, last, value = place + 1, -1, -1, np.uint64(0)
    size = 16
    while size < 2 * filled:
        size *= 2
    numbers, seen = np.empty(filled, dtype=np.int64), np.empty(filled, dtype=np.int64)
    different = _numbered(keys, filled, np.full(size, -1, dtype=np.int64), numbers, seen)
    repeated = 0
    newest = -1
    for place in range(filled):
        if numbers[place] > newest:
            newest = numbers[place]
        else:
            repeated += lengths[place]
    row[5], row[6], row[7] = hashes, ellipses, breaks
    if filled:
        row[8] = (filled - different) / filled
        row[9] = repeated / max(1, characters - breaks)
        row[10], row[11], row[12] = punctuated / filled, bullets / room, trailing_ellipses / room


@njit(cache=True, nogil=True)
def _measure_words(
    data: NDArray[np.uint16],
    offsets: NDArray[np.int64],
    unbroken: NDArray[np.uint16],
    bounds: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    classes: NDArray[np.uint8],
    stop_words: NDArray[np.uint64],
    measured: NDArray[np.float64],
) -> None:
    longest = most = word = 0
    for number in range(offsets.size - 1):  # room for the text with the most words
        begin = word
        while word < starts.size and starts[word] < bounds[number + 1]:
            word += 1
        most = max(most, word - begin)
    longest = 16
    while longest < 2 * most:
        longest *= 2
    whole_table = np.full(longest, -1, dtype=np.int64)
    lengths = np.empty(most + 1, dtype=np.int64)  # characters before each word
    keys, hashes = np.empty(most, dtype=np.uint64), np.empty(most, dtype=np.uint64)
    numbers, seen = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
    met = np.empty(most, dtype=np.int64)

    word = 0
    for number in range(offsets.size - 1):
        row = measured[number]
        text = data[offsets[number] : offsets[number + 1]]
        characters = -1
        for unit in text:
            characters += 1 if classes[unit] & TRAILING == 0 else 0
        _measure_lines(text, classes, characters, row)

        begin = word
        plain = plain_characters = alphabetic = 0
        lengths[0] = 0
        while word < starts.size and starts[word] < bounds[number + 1]:
            all_classes, length = 0, 0
            only_symbols = True
            for place in range(starts[word], ends[word]):
                kind = classes[unbroken[place]]
                all_classes |= kind
                only_symbols = only_symbols and kind & (SYMBOL | TRAILING) != 0
                length += 1 if kind & TRAILING == 0 else 0
            own = word - begin
            hashes[own] = _word_hash(unbroken[starts[word] : ends[word]])
            lengths[own + 1] = lengths[own] + length
            if not only_symbols:
                plain += 1
                plain_characters += length
            alphabetic += 1 if all_classes & LETTER else 0
            word += 1
        count = word - begin
        row[0], row[1] = count, plain
        row[2] = plain_characters / plain if plain else 0.0
        row[3] = alphabetic / count if count else 0.0
        for place in (5, 6, 7):
            row[place] = row[place] / count if count else row[place]
        if not count:
            continue

        size = 16
        while size < 2 * count:
            size *= 2
        table = whole_table[:size]
        for stop_word in stop_words:
            for own in range(count):
                if hashes[own] == stop_word:
                    row[4] += 1
                    break
        # A run of n words can only repeat where its first and its last n - 1 words do: few places are left soon.
        for own in range(count):  # an assignment of slices compiles for seconds, for the message of its error
            keys[own] = hashes[own]
        _numbered(keys, count, table, numbers, seen)
        for n in range(2, 11):
            runs = count - n + 1
            if runs < 1:
                break
            left = 0
            for place in range(runs):
                first, second = numbers[place], numbers[place + 1]
                if first >= 0 and second >= 0 and seen[first] > 1 and seen[second] > 1:
                    keys[place] = _mixed(np.uint64(first) * _FACTOR + hashes[place + n - 1]) | np.uint64(1)
                    left += 1
                else:
                    keys[place] = 0
            different = _numbered(keys, runs, table, numbers, seen)
            if n <= 4:
                top, frequency = 0, 1  # the first run, should none occur twice
                for place in range(runs):
                    if numbers[place] >= 0 and seen[numbers[place]] > frequency:
                        top, frequency = place, seen[numbers[place]]
                row[11 + n] = (lengths[top + n] - lengths[top] + n - 1) * frequency / characters
            else:
                met[:different] = 0
                repeated = place = 0
                while left and place < runs:
                    known = numbers[place]
                    if known >= 0 and met[known]:
                        repeated += lengths[place + n] - lengths[place]
                        place += n
                    else:
                        if known >= 0:
                            met[known] = 1
                        place += 1
                row[11 + n] = repeated / characters
            if left == 0 and n >= 4:
                break
