"""Answers to held-out chats are compared by Khmer words."""

import pytest

from khmer_assets.evaluation.examination import Answer
from khmer_assets.evaluation.tasks.chats import identity_of, measures, rouge_l
from khmer_assets.khmer.words import words


def chat(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"សំណួរអំពី {answer}"}, {"role": "assistant", "content": answer}]


def test_rouge_l_counts_words_that_are_not_parted_by_spaces():
    assert rouge_l(words("ខ្ញុំរៀនភាសាខ្មែរ"), words("ខ្ញុំរៀនភាសាខ្មែរ")) == 1
    half = rouge_l(words("ខ្ញុំរៀនភាសាអង់គ្លេស"), words("ខ្ញុំរៀនភាសាខ្មែរ"))
    assert 0.5 < half < 1
    assert rouge_l(["a", "x", "b"], ["a", "b", "c"]) == pytest.approx(2 * 2 / 6)
    assert rouge_l([], ["a"]) == 0 and rouge_l([], []) == 1


def test_a_chat_that_was_too_long_counts_as_not_answered():
    chats = {identity_of(one): one for one in (chat("ភ្នំពេញ"), chat("សៀមរាប"))}
    answers = dict(zip(chats, (Answer("ភ្នំពេញ", 2, -0.1, False), Answer("", 0, 0.0, True)), strict=True))
    told = {one.metric: one.told() for one in measures(chats, answers)}
    assert told["exact match"]["value"] == 50 and told["exact match"]["items"] == 2
    assert told["ROUGE-L"]["value"] == 50
