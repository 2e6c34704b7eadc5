"""Which chats are copies, and which prompts ask the same."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.instructions.copies import FORM, SHORTEST_CHAT, SHORTEST_PROMPT, clusters, copies_of, own_words


def words(count: int, seed: int) -> str:
    """Random Khmer of so many characters."""
    rng = Random(seed)
    return "".join(chr(rng.randrange(0x1780, 0x17A3)) for _ in range(count))


def changed(text: str) -> str:
    return text[:100] + "កខគ" + text[103:]


LONG = words(SHORTEST_CHAT + 100, 1)


def test_of_similar_long_chats_the_first_stays():
    other = words(300, 2)
    ((place, (kept, similarity)),) = copies_of([LONG, other, changed(LONG)]).items()
    assert (place, kept) == (2, 0)
    assert 0.9 < similarity < 1


def test_a_copy_of_a_copy_stays_where_it_is_unlike_what_stays():
    """Each is 0.8 and more like its neighbor, and the last is unlike the first, which stays."""
    first = words(400, 3)
    second = words(35, 4) + first[35:]
    chain = [first, second, second[:365] + words(35, 5)]
    assert copies_of(chain[:2]) and copies_of(chain[1:]) and not copies_of([chain[0], chain[2]])
    assert set(copies_of(chain)) == {1}


def test_short_chats_and_prompts_are_not_compared():
    for size, find in ((SHORTEST_CHAT, copies_of), (SHORTEST_PROMPT, clusters)):
        short = words(size - 1, 4)
        alike = [short, short[:-1] + "ក", *(words(size + 50, seed) for seed in (5, 6))]
        assert find(alike) in ({}, [0, 1, 2, 3])


def test_texts_with_other_numbers_are_no_copies():
    sums = [f"{LONG} ១២ {LONG}", f"{LONG} ១៣ {LONG}", f"{LONG} 12 {LONG}"]
    assert set(copies_of(sums)) == {2}, "digits of both scripts are the same number"
    assert clusters(sums) == [0, 1, 0]


@pytest.mark.parametrize("count", [FORM, FORM + 1])
def test_what_many_chats_have_word_for_word_is_a_form_and_no_reason(count):
    """A long instruction before short inputs makes no copies of them, once it is seen often enough."""
    chats = [f"{LONG}។ {words(30, seed)}។" for seed in range(count)]
    assert bool(copies_of(chats)) == (count == FORM)
    assert len(set(clusters(chats))) == (1 if count == FORM else count)
    assert own_words(chats)[0] == (chats[0] if count == FORM else f"{words(30, 0)}។")


def test_equal_prompts_are_in_one_cluster_whatever_their_length():
    assert clusters(["a", "b", "a", LONG, changed(LONG)]) == [0, 1, 0, 3, 3]


@given(st.lists(st.text(max_size=200), max_size=8))
def test_what_stays_is_no_copy(texts: list[str]) -> None:
    found = copies_of(texts)
    assert all(kept not in found and kept < place for place, (kept, _) in found.items())
