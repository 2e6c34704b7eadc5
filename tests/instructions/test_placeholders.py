"""Code, addresses, numbers and names of things come back as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.instructions.placeholders import protected, restored


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            "See https://example.org/a?b=1, or write to me@example.org.",
            ["https://example.org/a?b=1", "me@example.org"],
        ),
        ("Run `pip install x` on Python3 with GPT-4o.", ["`pip install x`", "Python3", "GPT-4o"]),
        ("It costs 1,250.50 riel, 20% more than in 2020.", ["1,250.50", "20%", "2020"]),
        ("Set max_length and camelCase, <b>bold</b> {name}.", ["max_length", "camelCase", "<b>", "</b>", "{name}"]),
        ("Phnom Penh is the capital.", []),
    ],
)
def test_what_is_kept(text, kept):
    assert protected(text)[1] == kept


@given(st.text(alphabet="ab A1_.`{}<>[]/:@%-", max_size=40))
def test_what_was_hidden_comes_back(text: str) -> None:
    hidden, kept = protected(text)
    if "[[" not in text:
        assert restored(hidden, kept) == (text, 0)


@pytest.mark.parametrize(("text", "wrong"), [("[[1]]", 1), ("[[1]] [[1]] [[2]]", 1), ("[[1]] [[2]] [[3]]", 1), ("", 2)])
def test_lost_doubled_and_made_up_placeholders_are_counted(text, wrong):
    assert restored(text, ["a", "b"])[1] == wrong
