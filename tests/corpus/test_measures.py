"""Letters, lines and words are counted; repetition is measured as Gopher's filters do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.corpus.measures import character_measures, word_measures

THREE_LINES = "ភូមិតូច។\nTonle Sap\nทะเลสาบ 12"


def words_of(text: str, khmer: bool = False) -> dict[str, float]:
    return word_measures([text], khmer, ("the", "ជា")).to_dicts()[0]


def test_letters_and_lines_by_script():
    (row,) = character_measures([THREE_LINES]).to_dicts()
    assert row["characters"] == len(THREE_LINES)
    assert (row["khmer"], row["latin"], row["foreign"], row["symbols"]) == (7, 8, 7, 1)
    assert (row["khmer_lines"], row["latin_lines"], row["lines"]) == (1, 1, 3)


@pytest.mark.parametrize("text", ["ផ្សេងៗ ១២", "Đường phố", "a\u0301 ʼ", "12 + 3 = 15 😀"])
def test_what_is_not_a_foreign_letter(text):
    assert character_measures([text])["foreign"].item() == 0


def test_a_character_outside_the_basic_plane_counts_once():
    assert character_measures(["😀a"]).select("characters", "visible", "symbols").row(0) == (2, 2, 1)
    assert character_measures(["𠀀𠀁"]).select("characters", "foreign").row(0) == (2, 2)


def test_lines():
    row = words_of("- one.\n- two...\n\n- one.\n- three")
    assert row["duplicate_lines"] == 1 / 4
    assert row["duplicate_line_characters"] == pytest.approx(6 / 27)
    assert (row["punctuated_lines"], row["bullet_lines"], row["ellipsis_lines"]) == (3 / 4, 4 / 5, 1 / 5)


def test_words():
    row = words_of("the # a12 — …")
    assert (row["words"], row["plain_words"], row["word_length"], row["alphabetic_words"]) == (5, 2, 3, 2 / 5)
    assert (row["stop_words"], row["hashes"], row["ellipses"]) == (1, 1 / 5, 1 / 5)


def test_khmer_words_are_found_without_spaces():
    row = words_of("ខ្ញុំជាសិស្ស", khmer=True)
    assert (row["words"], row["stop_words"]) == (3, 1)


def duplicates(words: list[str], n: int) -> int:
    """Characters in runs of n words that came before, as Gopher counts them: no word twice."""
    seen, place, repeated = set(), 0, 0
    while place + n <= len(words):
        run = tuple(words[place : place + n])
        repeated += len("".join(run)) if run in seen else 0
        place += n if run in seen else 1
        seen.add(run)
    return repeated


def top(words: list[str], n: int) -> int:
    """Characters in all occurrences of the most frequent run of n words, the first one of several."""
    runs = [" ".join(words[place : place + n]) for place in range(len(words) - n + 1)]
    return max(runs.count(run) * len(run) for run in runs if run == max(runs, key=runs.count)) if runs else 0


@given(st.lists(st.sampled_from(["a", "bc", "def"]), min_size=1, max_size=60))
def test_repetition_is_what_a_plain_count_finds(words):
    text = " ".join(words)
    row = words_of(text)
    for n in (5, 6, 7, 8, 9, 10):
        assert row[f"duplicate_{n}_grams"] == pytest.approx(duplicates(words, n) / len(text))
    for n in (2, 3, 4):
        assert row[f"top_{n}_grams"] == pytest.approx(top(words, n) / len(text))


@given(st.lists(st.text(max_size=100), max_size=4), st.booleans())
def test_a_text_measures_the_same_alone_and_among_others(texts, khmer):
    assert character_measures(texts).rows() == [character_measures([text]).row(0) for text in texts]
    alone = [word_measures([text], khmer, ("the",)).row(0) for text in texts]
    assert word_measures(texts, khmer, ("the",)).rows() == alone
