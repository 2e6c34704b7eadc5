"""Composes sentences, questions and short texts from `knowledge.yaml`.

What belongs here: filling templates. Making documents or chats of them is the business of the corpus and of the
instructions. A change that alters what is composed raises `VERSION`.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.khmer.dates import MONTHS, WEEKDAYS
from khmer_assets.khmer.numbers import number_to_words, to_khmer_digits
from khmer_assets.khmer.script import Language
from khmer_assets.khmer.utterances import hash_of_conversation

VERSION = 7
SAMPLE = Path(__file__).parent

_KNOWLEDGE = SAMPLE / "knowledge.yaml"
WRITTEN_CHATS = SAMPLE / "chats.jsonl"
_ENGLISH_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_ENGLISH_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
             "twelfth")  # fmt: skip
_ENGLISH_NUMBERS = ("one", "two", "three", "four", "five")
_DAYS = ("31", "28 or 29", "31", "30", "31", "30", "31", "31", "30", "31", "30", "31")
_SPELLED = (*range(1, 21), 30, 40, 50, 60, 70, 80, 90, 100)  # numbers that are asked about in words
# What is asked about is little enough for a model of a few million parameters to learn in minutes.
_SUMMED = range(1, 6)
_ASKED_ROWS = 12  # of each table of the file; texts are composed from all of it
_NOTES = (5_000, 10_000, 20_000, 50_000, 100_000, 200_000)  # riel: what a buyer pays with
_CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
_KEPT = ("person", "friend", "place", "region", "known", "place2", "known2", "vehicle", "crop", "livestock", "weekday",
         "weekday2", "month", "a", "b", "sum")  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A row of a table under a task: ways of asking it, and the one answer.

    It is asked `weight` times as often as others."""

    category: str
    language: Language
    questions: tuple[str, ...]
    answer: str
    task: int
    follow_up: str | None
    weight: int


@cache
def knowledge() -> dict[str, Any]:
    """The content of `knowledge.yaml`."""
    return read_yaml(_KNOWLEDGE)


def fingerprint() -> str:
    """A digest of everything that decides what is composed from a seed."""
    known = _KNOWLEDGE.read_bytes() + WRITTEN_CHATS.read_bytes()
    return hashlib.sha256(f"{VERSION}\n".encode() + known).hexdigest()


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact in both languages, in the order of the tasks. A question has one answer, whoever asks it."""
    tables = _tables(_ASKED_ROWS)
    return tuple(
        Fact(
            task["category"],
            task["language"],
            tuple(_fill(way, row) for way in ways),
            _fill(task["answer"], row),
            number,
            _fill(task["follow_up"], row) if "follow_up" in task else None,
            task.get("weight", 1),
        )
        for number, task in enumerate(knowledge()["tasks"])
        for ways in [all_wordings(task["questions"])]
        for row in tables[task["table"]]
    )


def wordings(pattern: str) -> list[str]:
    """Every wording of a pattern, in which `(a|b|)` stands for one of `a`, `b` and nothing; the first choices first."""
    choice = _CHOICE.search(pattern)
    if not choice:
        return [" ".join(pattern.split())]
    before, after = pattern[: choice.start()], pattern[choice.end() :]
    return [way for chosen in choice[1].split("|") for way in wordings(before + chosen + after)]


def all_wordings(patterns: Iterable[str]) -> list[str]:
    """The wordings of all patterns, each once."""
    return list(dict.fromkeys(way for pattern in patterns for way in wordings(pattern)))


def compose_text(rng: Random, language: Language) -> tuple[str, str]:
    """A category and a text: questions with their answers, facts of one kind, or a scene of everyday life."""
    draw = rng.random()
    if draw < 0.5:
        about = rng.choices(*_asked_facts(language), k=rng.randint(2, 4))
        asked = [_question_and_answer(rng, fact) for fact in about]
        asked += [rng.choice(ways) for ways in rng.sample(_other_questions_and_answers(language), rng.randint(2, 3))]
        return "questions", "\n\n".join(rng.sample(asked, len(asked)))
    if draw < 0.7:
        category = rng.choice(facts()).category
        return category, " ".join(rng.sample(_sentences(category, language), rng.randint(4, 8)))
    category, theme = rng.choice(list(knowledge()["themes"][language].items()))
    templates = [rng.choice(theme["open"]), *rng.sample(theme["body"], rng.randint(2, 6))]
    if rng.random() < 0.5:
        templates.append(rng.choice(theme["close"]))
    kept = {name: value for name, value in _slots(rng, language).items() if name.removesuffix("_km") in _KEPT}
    return category, " ".join(_fill(template, {**_slots(rng, language), **kept}) for template in templates)


@dataclass(frozen=True)
class Answered:
    """Something that a user says, and the one answer to it. It is said `weight` times as often as others."""

    category: str
    language: Language
    question: str
    answer: str
    weight: int = 1


@cache
def written() -> tuple[tuple[Answered, ...], ...]:
    """What is asked in the chats that are written by hand (`chats.jsonl`): the ways of saying one thing together."""
    return tuple(
        tuple(replace(one, question=way) for way in patterns if wordings(way) == [way]) for one, patterns in _entries()
    )


@cache
def reworded() -> tuple[tuple[Answered, ...], ...]:
    """Other ways of saying what is written by hand, those of one thing together: the wordings of its patterns, and what
    is written said to somebody (greetings, thanks) or in a polite frame (questions)."""
    known = {hash_of_question(one.question) for one in itertools.chain(*written())}
    found = []
    for (one, patterns), said in zip(_entries(), written(), strict=True):
        ways = []
        for way in (*all_wordings(patterns), *(way for plain in said for way in _politely(plain))):
            if (digest := hash_of_question(way)) not in known:  # the same words but for their marks are said once
                known.add(digest)
                ways.append(replace(one, question=way))
        found.append(tuple(ways))
    return tuple(found)


def _entries() -> list[tuple[Answered, list[str]]]:
    """The lines of `chats.jsonl`: what has no question yet, and the patterns of its questions."""
    entries = map(json.loads, WRITTEN_CHATS.read_text(encoding="utf-8").splitlines())
    return [
        (Answered(e["category"], e["language"], "", e["answer"], e.get("weight", 1)), e["questions"]) for e in entries
    ]


def _politely(one: Answered) -> list[str]:
    if one.question.endswith("?"):
        return framed(one.question, one.language)
    if one.category not in ("greeting", "thanks", "farewell"):
        return []
    said_plainly = one.question.rstrip("!។.")
    spaces = ("", " ") if one.language == "khm" else (" ",)  # Khmer is written without, and by many with
    return [f"{said_plainly}{space}{who}" for who in knowledge()["addresses"][one.language] for space in spaces]


def hash_of_question(question: str) -> str:
    return hash_of_conversation([("user", question)])


def framed(question: str, language: Language) -> list[str]:
    """The question in the polite frames of its language; a request stands alone."""
    if not question.endswith("?"):
        return []
    bare = question.removeprefix("តើ").strip(" ?")
    bare = bare if language == "khm" else bare[0].lower() + bare[1:]
    return [frame.format(question, bare=bare) for frame in knowledge()["frames"][language]]


@cache
def unknown() -> tuple[tuple[Answered, ...], ...]:
    """Requests that the model is not made for, those of a form together, with the answer that says so."""
    return tuple(
        tuple(Answered("unknown", language, request, requests["answer"]) for request in alike)
        for language, requests in knowledge()["unknown"].items()
        for alike in (
            all_wordings(requests["alone"]),
            *([form.format(thing) for thing in requests["things"]] for form in requests["forms"]),
        )
    )


@cache
def _asked_facts(language: Language) -> tuple[list[Fact], list[int]]:
    """The facts of a language that questions ask about, and their weights."""
    asked = [fact for fact in facts() if fact.language == language and fact.questions]
    return asked, [fact.weight for fact in asked]


def _question_and_answer(rng: Random, fact: Fact) -> str:
    """A way of asking that no held-out chat has, and the answer; the answer alone, where there is none."""
    ways = rng.sample(fact.questions, len(fact.questions))
    return next((f"{way}\n{fact.answer}" for way in ways if _never_held_out(way, fact.answer)), fact.answer)


@cache
def _other_questions_and_answers(language: Language) -> list[list[str]]:
    """What is said that asks no fact, each with its answer in the next line, if no held-out chat has it: the ways of
    saying one thing together."""
    said = [(*plain, *other) for plain, other in zip(written(), reworded(), strict=True)]
    found = [
        [f"{one.question}\n{one.answer}" for one in ways if _never_held_out(one.question, one.answer)]
        for ways in (*said, *unknown())
        if ways[0].language == language
    ]
    return [ways for ways in found if ways]


def _never_held_out(question: str, answer: str) -> bool:
    """Chats are held out by hash, those with high hashes first; so of the lower half, none is, whatever the recipe's
    split, as long as it trains on half of the chats."""
    return hash_of_conversation([("user", question), ("assistant", answer)]) < "8"


@cache
def _sentences(category: str, language: Language) -> list[str]:
    return list(dict.fromkeys(f.answer for f in facts() if (f.category, f.language) == (category, language)))


def _fill(template: str, values: dict[str, str]) -> str:
    text = template.format_map(values)
    return text[0].upper() + text[1:]


def _tables(rows: int | None = None) -> dict[str, list[dict[str, str]]]:
    """The tables of the file, their first `rows`, and those that are computed.

    A number's column has a twin `_km` in Khmer digits.
    """
    tables: dict[str, list[dict[str, Any]]] = {
        name: [dict(zip(table["columns"], row, strict=True)) for row in table["rows"][:rows]]
        for name, table in knowledge()["tables"].items()
    }
    tables["both_opposites"] = [
        row
        for pair in tables["opposites"]
        for row in (
            pair,
            {"km": pair["other_km"], "en": pair["other_en"], "other_km": pair["km"], "other_en": pair["en"]},
        )
    ]
    tables["months"] = [
        {
            **row,
            "number": number,
            "ordinal": ordinal,
            "ordinal_km": number_to_words(number),
            "days": days,
            "days_km": to_khmer_digits(days).replace("or", "ឬ"),
        }
        for (number, row), ordinal, days in zip(
            enumerate(_cycle(MONTHS, _ENGLISH_MONTHS), 1), _ORDINALS, _DAYS, strict=True
        )
    ]
    tables["weekdays"] = list(_cycle(WEEKDAYS, _ENGLISH_WEEKDAYS))
    tables["numbers"] = [{"number": number, "words": number_to_words(number)} for number in _SPELLED]
    pairs = [
        (a, b, {"a": a, "b": b, "a_words": number_to_words(a), "b_words": number_to_words(b),
                "a_en": _ENGLISH_NUMBERS[a - 1], "b_en": _ENGLISH_NUMBERS[b - 1]})
        for a, b in itertools.product(_SUMMED, _SUMMED)
    ]  # fmt: skip
    tables["sums"] = [{**pair, "sum": a + b} for a, b, pair in pairs]
    tables["differences"] = [{**pair, "difference": a - b} for a, b, pair in pairs if a >= b]
    tables["comparisons"] = [
        {"a": a, "b": b, "larger": max(a, b), "smaller": min(a, b)} for a, b in itertools.permutations(_SUMMED, 2)
    ]
    return {name: [_with_khmer_digits(row) for row in rows] for name, rows in tables.items()}


def _cycle(khmer: tuple[str, ...], english: tuple[str, ...]) -> Iterable[dict[str, Any]]:
    """The names of a cycle in both languages, each with the one before and the one after."""
    for n, (km, en) in enumerate(zip(khmer, english, strict=True)):
        after = (n + 1) % len(khmer)
        yield {"km": km, "en": en, "next_km": khmer[after], "next_en": english[after],
               "previous_km": khmer[n - 1], "previous_en": english[n - 1]}  # fmt: skip


def _with_khmer_digits(row: dict[str, Any]) -> dict[str, str]:
    numbers = {f"{name}_km": to_khmer_digits(value) for name, value in row.items() if isinstance(value, int)}
    return {name: str(value) for name, value in row.items()} | numbers


def _slots(rng: Random, language: Language) -> dict[str, str]:
    """A value for every slot of the themes; those that belong together agree."""
    words = {name: rng.choice(values[language]) for name, values in knowledge()["slots"].items()}
    suffix = "km" if language == "khm" else "en"
    tables = _tables_by_language(suffix)
    (place, place2), job = rng.sample(tables["provinces"], 2), rng.choice(tables["jobs"])
    person, friend = rng.sample(knowledge()["slots"]["person"][language], 2)
    goods, goods2 = rng.sample(knowledge()["slots"]["goods"][language], 2)
    subject, subject2 = rng.sample(knowledge()["slots"]["subject"][language], 2)
    weekday, weekday2 = rng.sample(WEEKDAYS if language == "khm" else _ENGLISH_WEEKDAYS, 2)
    words |= {
        "place": place["name"], "region": place["region"], "known": place["known"],
        "place2": place2["name"], "known2": place2["known"], "job": job["name"], "workplace": job["place"],
        "person": person, "friend": friend, "goods": goods, "goods2": goods2, "subject": subject, "subject2": subject2,
        "weekday": weekday, "weekday2": weekday2,
        "month": rng.choice(MONTHS if language == "khm" else _ENGLISH_MONTHS),
    }  # fmt: skip
    price, quantity = 500 * rng.randint(3, 40), rng.randint(2, 9)
    cost = price * quantity
    paid = min(note for note in _NOTES if note >= cost)
    a, b, n = rng.randint(1, 10), rng.randint(1, 10), rng.choice(_SPELLED)
    numbers = {
        "price": price, "quantity": quantity, "cost": cost, "paid": paid, "change": paid - cost, "lower": price - 500,
        "a": a, "b": b, "sum": a + b, "n": n, "morning": rng.randint(5, 11), "evening": rng.randint(3, 6),
        "date": rng.randint(1, 28), "year": rng.randint(1970, 2020), "age": rng.randint(6, 18),
        "age2": rng.randint(20, 80), "grade": rng.randint(1, 12), "class": rng.randint(20, 50),
        "minutes": 5 * rng.randint(4, 12), "score": rng.randint(40, 99), "page": rng.randint(10, 200),
        "hotel": 5_000 * rng.randint(6, 40), "distance": rng.randint(30, 450), "degrees": rng.randint(20, 39),
        "flock": rng.randint(2, 40), "tons": rng.randint(2, 15),
    }  # fmt: skip
    return words | _with_khmer_digits(numbers) | {"n_words": number_to_words(n)}


@cache
def _tables_by_language(suffix: str) -> dict[str, list[dict[str, str]]]:
    """Places and jobs with the columns of one language, its suffix taken off."""
    return {
        name: [
            {"name": row[suffix]} | {column.removesuffix(f"_{suffix}"): value for column, value in row.items()}
            for row in _tables()[name]
        ]
        for name in ("provinces", "jobs")
    }
