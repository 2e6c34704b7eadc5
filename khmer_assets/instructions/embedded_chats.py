"""The embedded chats: those written by hand in `sample/chats.jsonl`, and those composed from the sample's facts."""

import json
from collections import defaultdict
from collections.abc import Iterator
from random import Random
from typing import Annotated, Any

import polars as pl
from pydantic import Field, model_validator

from khmer_assets.foundation.settings import FileBeside, RecipeError, Settings
from khmer_assets.instructions.chats import NEW_CHAT, Split, new_chat
from khmer_assets.sample import composition
from khmer_assets.sample.composition import Fact


class Instructions(Settings):
    """Which chats are learned, and how all of them are split.

    `files`: JSONL files of your own, relative to the recipe; a line is {"messages": [{"role": ..., "content": ...},
    ...]}. `generated_chats`: how many the project composes from the sample's facts, beside those written by hand;
    null: none of both.
    """

    files: list[FileBeside] = []
    generated_chats: Annotated[int, Field(ge=10)] | None = None
    split: Split = Split()

    @model_validator(mode="after")
    def _has_chats(self) -> "Instructions":
        if not self.files and self.generated_chats is None:
            raise ValueError("there is no chat to learn from: name files of chats, or set generated_chats")
        return self


WRITTEN_CHATS = composition.SAMPLE / "chats.jsonl"
LONGER_SHARE = 0.05  # of the composed chats: two turns, where the second question leans on the first


def written_chats() -> pl.LazyFrame:
    """The chats written by hand, as `NEW_CHAT`: greetings, identity, thanks, farewells and everyday questions.

    A line of the file holds the ways of asking one thing and its answer; each way makes a chat.
    """
    rows = []
    for number, line in enumerate(WRITTEN_CHATS.read_text(encoding="utf-8").splitlines(), 1):
        entry = json.loads(line)
        for way, question in enumerate(entry["questions"], 1):
            turns = [question, entry["answer"]]
            rows.append(new_chat(f"written-{number}-{way}", "written", entry["language"], entry["category"], turns))
    return pl.LazyFrame(rows, schema=NEW_CHAT)


def compose_chats(count: int, seed: int) -> pl.LazyFrame:
    """Exactly `count` different chats about facts, as `NEW_CHAT`; the same for the same seed.

    Every fact is asked in about equally many ways, so that a way that is held out has a sibling to learn from; a
    question has one right answer. Raises `RecipeError` when so many cannot be composed.
    """
    rng = Random(seed)
    longer = int(count * LONGER_SHARE)
    single = [new_chat("", "composed", fact.language, fact.category, [question, fact.answer])
              for fact, question in _questions(rng)]  # fmt: skip
    if count - longer > len(single):
        limit = int(len(single) / (1 - LONGER_SHARE))
        raise RecipeError(
            f"instructions.generated_chats is {count}; at most {limit} different chats can be composed: lower it"
        )
    rows = single[: count - longer] + _follow_ups(longer, rng)
    return pl.LazyFrame([{**row, "id": f"composed-{n}"} for n, row in enumerate(rows, 1)], schema=NEW_CHAT)


def _questions(rng: Random) -> Iterator[tuple[Fact, str]]:
    """Every question about every fact: one way of asking each, then a second way, and so on; plain ways first."""
    ways = [
        (fact, [way for group in (fact.questions, fact.framed_questions) for way in rng.sample(group, len(group))])
        for fact in composition.facts()
    ]
    rng.shuffle(ways)
    for number in range(max(len(questions) for _, questions in ways)):
        yield from ((fact, questions[number]) for fact, questions in ways if number < len(questions))


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
