"""A text is seen as counts of its character n-grams, whatever the text."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.labels.features import BUCKETS, LONGEST, ngram_counts


def counted(*texts: str, characters: int = 3000) -> list[dict[int, float]]:
    found = ngram_counts(texts, characters)
    return [
        dict(zip(found.buckets[start:end].tolist(), found.counts[start:end].tolist(), strict=True))
        for start, end in zip(found.starts[:-1], found.starts[1:], strict=True)
    ]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
def test_every_run_of_characters_is_counted_once_a_time_that_it_occurs(texts):
    for text, found in zip(texts, counted(*texts), strict=True):
        assert all(0 <= bucket < BUCKETS for bucket in found)
        runs = sum(found.values())
        assert runs <= LONGEST * (len(text.encode("utf-16-le")) // 2 + 2)
        assert found == counted(text)[0]


def test_runs_that_occur_twice_count_twice():
    (found,) = counted("aa")  # with a space before and behind
    runs = Counter(" aa "[start : start + n] for n in range(1, 6) for start in range(4) if start + n <= 4)
    assert sorted(found.values()) == sorted(runs.values())


def test_case_digits_spaces_and_invisible_characters_make_no_difference():
    first, second, other = counted("ខែ ២០២៤ \u200b Khmer", "  ខែ\n1999 kHMER\u200c", "ខែ ២០២៤ Khmes")
    assert first == second != other


def test_what_stands_behind_the_limit_is_not_seen():
    first, second, whole = counted("សួស្តី" * 10 + "a", "សួស្តី" * 10 + "b", "សួស្តី" * 10, characters=60)
    assert first == second == whole


def test_nothing_gives_nothing():
    assert counted("", " \n", "\u200b") == [{}, {}, {}]
