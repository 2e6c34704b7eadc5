"""The embedded chats: those written by hand in `sample/chats.jsonl`, and those composed from the sample's facts."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from random import Random
from typing import Any

import polars as pl

from khmer_assets.foundation.settings import RecipeError
from khmer_assets.instructions.chats import NEW_CHAT, new_chat
from khmer_assets.sample import composition
from khmer_assets.sample.composition import Answered, Fact

# Of the composed chats:
LONGER_SHARE = 0.05  # two turns, where the second question leans on the first
REWORDED_SHARE = 0.34  # what is written by hand, in other words
UNKNOWN_SHARE = 0.12  # what the model is not made for
LOWERED_SHARE = 0.3  # as many people type: without capitals
RESPELLED_SHARE = 0.3  # with other usual spellings
UNMARKED_SHARE = 0.2  # without the mark at the end


def written_chats() -> pl.LazyFrame:
    """The chats written by hand, as `NEW_CHAT`: greetings, identity, thanks, farewells and everyday questions.

    A line of the file holds the ways of asking one thing and its answer; each way that is no pattern makes a chat.
    """
    rows = [
        new_chat(f"written-{number}-{way}", "written", one.language, one.category, [one.question, one.answer])
        for number, ways in enumerate(composition.written(), 1)
        for way, one in enumerate(ways, 1)
    ]
    return pl.LazyFrame(rows, schema=NEW_CHAT)


def compose_chats(count: int, seed: int) -> pl.LazyFrame:
    """Exactly `count` different chats, as `NEW_CHAT`: about facts, in the polite forms of what is written by hand, and
    about what the model does not know; the same for the same seed.

    Facts of a task are asked in equally many ways, so that a way that is held out has a sibling to learn from; a
    question has one right answer. Raises `RecipeError` when so many cannot be composed.
    """
    rng = Random(seed)
    longer = int(count * LONGER_SHARE)
    asked = [
        one
        for said, share in ((composition.reworded(), REWORDED_SHARE), (composition.unknown(), UNKNOWN_SHARE))
        for one in _in_turn(said, int(count * share), rng)
    ]
    about_facts = _questions(rng)
    if count - longer - len(asked) > len(about_facts):
        raise RecipeError(
            f"instructions.generated_chats is {count}; at most {len(about_facts)} different chats can be composed "
            "about facts: lower it"
        )
    asked = about_facts[: count - longer - len(asked)] + asked
    rows = [
        new_chat("", "composed", one.language, one.category, [_as_typed(one.question, rng), one.answer])
        for one in asked
    ] + _follow_ups(longer, rng)
    return pl.LazyFrame([{**row, "id": f"composed-{n}"} for n, row in enumerate(rows, 1)], schema=NEW_CHAT)


def _in_turn(said: Iterable[Sequence[Answered]], count: int, rng: Random) -> list[Answered]:
    """`count` of what is said, fewer where there are no more: of each thing one way (or as many as its weight says),
    then a second, and so on."""
    shuffled = [rng.sample(ways, len(ways)) for ways in said]
    rng.shuffle(shuffled)
    in_turn = (
        way
        for turn in range(max(map(len, shuffled)))
        for ways in shuffled
        for way in ways[turn * ways[0].weight : (turn + 1) * ways[0].weight]
    )
    return [*islice(in_turn, count)]


def _as_typed(question: str, rng: Random) -> str:
    if rng.random() < RESPELLED_SHARE:
        for word, others in composition.knowledge()["spellings"].items():
            question = question.replace(word, rng.choice(others))
    if rng.random() < LOWERED_SHARE:
        question = question.lower()
    return question.rstrip("?") if rng.random() < UNMARKED_SHARE else question


def _questions(rng: Random) -> list[Answered]:
    """Every question about every fact: one way of asking each (or as many as its weight says), then a second way, and
    so on, the first way of the file before others; each fourth way is in a polite frame, where a frame fits. Ways that
    differ in marks alone are one."""
    asked = []
    for fact in composition.facts():
        plain = [*fact.questions[:1], *rng.sample(fact.questions[1:], max(0, len(fact.questions) - 1))]
        ways = []
        for number, question in enumerate(plain, 1):
            ways.append(question)
            if number % 3 == 0 and (frames := composition.framed(rng.choice(plain), fact.language)):
                ways.append(rng.choice(frames))
        asked.append((fact, ways))
    rng.shuffle(asked)
    found = {
        composition.hash_of_question(question): Answered(fact.category, fact.language, question, fact.answer)
        for number in reversed(range(max(len(ways) for _, ways in asked)))
        for fact, ways in asked
        for question in ways[number * fact.weight : (number + 1) * fact.weight]
    }
    return [*found.values()][::-1]


def _follow_ups(count: int, rng: Random) -> list[dict[str, Any]]:
    """Chats that ask a question about one thing, and then the same about another without repeating it."""
    tasks: dict[int, list[Fact]] = defaultdict(list)
    for fact in composition.facts():
        if fact.follow_up and fact.questions:
            tasks[fact.task].append(fact)
    chats: dict[tuple[str, ...], dict[str, Any]] = {}
    while len(chats) < count:
        first, second = rng.sample(rng.choice(list(tasks.values())), 2)
        turns = (rng.choice(first.questions), first.answer, second.follow_up or "", second.answer)
        system = composition.knowledge()["system"][first.language]
        chats[turns] = new_chat("", "composed", first.language, first.category, turns, system)
    return list(chats.values())
