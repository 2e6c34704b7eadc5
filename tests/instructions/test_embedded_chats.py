"""The embedded chats."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import chain

import polars as pl
import pytest

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.instructions.chats import find_fault, hash_of
from khmer_assets.instructions.embedded_chats import compose_chats, written_chats
from khmer_assets.khmer.normalization import normalize
from khmer_assets.khmer.utterances import bare
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sample import composition

COUNT = 9000


@pytest.fixture(scope="module")
def composed() -> pl.DataFrame:
    return compose_chats(COUNT, seed=1).collect()


@pytest.fixture(scope="module")
def chats(composed) -> pl.DataFrame:
    return pl.concat([written_chats().collect(), composed])


def test_as_many_are_composed_as_asked_for(composed):
    assert composed.height == COUNT
    assert compose_chats(10, seed=1).collect().height == 10


def test_the_same_seed_composes_the_same_chats(composed):
    assert compose_chats(COUNT, seed=1).collect().equals(composed)
    assert not compose_chats(COUNT, seed=2).collect().equals(composed)


def test_more_than_there_are_is_refused():
    with pytest.raises(
        RecipeError, match=r"generated_chats is 1000000; at most \d+ different chats can be composed about facts"
    ):
        compose_chats(1_000_000, seed=1)


def test_greetings_and_identity_have_two_hundred_examples():
    polite = written_chats().filter(pl.col("category").is_in(["greeting", "identity", "thanks", "farewell"])).collect()
    assert polite.height >= 200
    assert set(polite["language"]) == {"khm", "eng"}


def test_every_chat_is_valid_and_different_and_every_answer_canonical(chats):
    said = chats["messages"].to_list()
    assert [fault for messages in said if (fault := find_fault(messages))] == []
    assert len({hash_of(messages) for messages in said}) == len(said)
    assert chats["id"].is_unique().all()
    settings = Recipe.load(SAMPLE_RECIPE).normalization
    for messages in said:
        assert normalize(messages[-1]["content"], settings) == (messages[-1]["content"], {})


def test_what_was_said_before_decides_the_answer(chats):
    answers: dict[str, str] = {}
    for messages in chats["messages"].to_list():
        before = hash_of(messages[:-1])
        assert answers.setdefault(before, messages[-1]["content"]) == messages[-1]["content"]


def test_answers_are_short(chats):
    lengths = [len(messages[-1]["content"]) for messages in chats["messages"].to_list()]
    assert max(lengths) <= 80
    assert sum(length < 60 for length in lengths) > 0.95 * len(lengths)


def test_every_fact_is_asked_in_several_ways(composed):
    ways = Counter(messages[-1]["content"] for messages in composed["messages"].to_list())
    assert min(ways.values()) >= 3


def test_questions_are_also_spelled_as_many_people_do(composed):
    asked = [messages[0]["content"] for messages in composed["messages"].to_list()]
    for spelling in ("ច័ន្ទ", "ជំរាប", "ស្ដី"):
        share = sum(spelling in question for question in asked) / len(asked)
        assert 0 < share < 0.1, spelling


def test_a_follow_up_leans_on_the_first_question(composed):
    longer = composed.filter(pl.col("messages").list.len() > 2)
    assert longer.height == COUNT // 20
    by_question: dict[str, set[str]] = defaultdict(set)
    for system, _, _, question, answer in longer["messages"].to_list():
        assert system["role"] == "system"
        by_question[question["content"]].add(answer["content"])
    assert max(map(len, by_question.values())) > 1  # the same words ask different things


def test_sixty_questions_are_asked_in_wordings_that_nothing_is_trained_on(chats):
    recipe = Recipe.load(SAMPLE_RECIPE)
    known = {bare(question) for question in every_question()}
    asked = {bare(messages[0]["content"]) for messages in chats["messages"].to_list()}
    prompts = [bare(prompt.prompt) for prompt in recipe.evaluation.prompts]
    assert sum(prompt not in known for prompt in prompts) == 60
    assert all(prompt in asked for prompt in prompts if prompt in known)
    assert bare(recipe.serving.question) in asked


def every_question() -> Iterator[str]:
    """All that a chat or a text of the sample can ask."""
    for one in chain(*composition.written(), *composition.reworded(), *composition.unknown()):
        yield one.question
    for fact in composition.facts():
        for question in fact.questions:
            yield from (question, *composition.framed(question, fact.language))
