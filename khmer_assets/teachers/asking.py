"""Asking teachers about many rows: who is asked, when, and what becomes of each row.

What is said (`messages.py`), one request (`connection.py`), what is kept (`answers.py`), how fast (`limits.py`), when
not (`pauses.py`) and what it took (`books.py`) stand beside it. What a teacher was paid for is kept, answers and
faults; what nobody paid for (no connection, no budget) is asked again the next time.
"""

import asyncio
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from khmer_assets.teachers.answers import Answers, Kept, costs_by_day
from khmer_assets.teachers.books import Answer, Asked, Purse, Spent, TeacherError, told_cost
from khmer_assets.teachers.desk import Desk, Item
from khmer_assets.teachers.messages import digest_of_row, rendered
from khmer_assets.teachers.settings import Budget, Teacher, Template

__all__ = ["Answer", "Asked", "TeacherError", "ask", "teacher_of"]

PROGRESS_SECONDS = 10.0
DAYS_SHOWN = 30  # rows of the table of costs


def teacher_of(teachers: Sequence[Teacher], values: Mapping[str, str]) -> Teacher:
    """The teacher of a row, by its content alone: more rows move none, and another teacher only those that it gets.

    Weighted rendezvous hashing (Schindelhauer and Schomaker 2005, "Weighted Distributed Hash Tables").
    """
    content = json.dumps(dict(sorted(values.items())), ensure_ascii=False)

    def weight(teacher: Teacher) -> float:
        digest = hashlib.sha256(f"{teacher.name}\0{content}".encode()).digest()
        position = (int.from_bytes(digest[:6], "big") + 0.5) / 256**6
        return -teacher.share / math.log(position)

    return max(teachers, key=weight) if len(teachers) > 1 else teachers[0]


def ask(
    teachers: Sequence[Teacher],
    template: Template,
    rows: Iterable[Mapping[str, str]],
    answers: Path,
    budget: Budget,
    log: Callable[[str], None],
    purpose: str = "",
) -> tuple[list[Answer], Asked]:
    """The teachers' answers for rows, in their order, and the books.

    A row has an `id` and the values of the template's placeholders. `answers` is the folder of what was answered so
    far;
    no row is asked that is there. Rows that were not asked, for want of budget or because a teacher gave up, have no
    answer; the next call goes on with them. `log` gets progress; `purpose` names the caller in the table of costs.
    Raises `TeacherError` for teachers that cannot be asked at all.
    """
    asked = Asked(teachers, by_teacher={teacher.name: Spent() for teacher in teachers})
    if not teachers:
        raise TeacherError("no teacher is set, expected at least one under teachers: (docs/teachers.md)")
    if budget.money is not None and (free := [teacher.name for teacher in teachers if not teacher.priced]):
        raise TeacherError(
            f"budget.money is {budget.money:g}, but teacher {free[0]} has no prices: set its prompt_price and "
            "answer_price (money a million tokens; 0 where it costs nothing), or limit requests or tokens"
        )
    try:
        room = Room(teachers, template, rows)
        asked.rows = len(room.rows)
        room.work(answers, Purse(budget), purpose, asked, log)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # a full disk, say
            raise
        raise TeacherError(
            f"{answers}: expected SQLite files of answers, but: {error}; bring them back from a copy, or move them "
            "away and pay for the answers anew"
        ) from None
    days = costs_by_day(answers).drop("purpose").group_by("day", "teacher", maintain_order=True)
    unknown = pl.col("cost").has_nulls()
    asked.by_day = days.agg(
        pl.exclude("cost").sum(), cost=pl.when(unknown).then(None).otherwise(pl.col("cost").sum())
    ).tail(DAYS_SHOWN)
    return room.answers(asked), asked


class Room:
    """The rows of one call, each at its teacher. `rows` are (id, teacher, digest); `items` what there is to ask."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        template: Template,
        rows: Iterable[Mapping[str, str]],
    ):
        self._template = template
        self.rows: list[tuple[str, str, str]] = []  # id, teacher, digest
        self.items: dict[str, dict[str, Item]] = {teacher.name: {} for teacher in teachers}
        self._found: dict[tuple[str, str], Kept] = {}  # by teacher and digest
        self._asked_now: set[tuple[str, str]] = set()
        self._teachers, self._version, self._placeholders = teachers, template.version, template.placeholders
        for row in rows:
            self._add(row)

    def _add(self, row: Mapping[str, str]) -> None:
        if lacking := [name for name in self._placeholders if name not in row]:
            raise TeacherError(
                f"the template asks for {{{lacking[0]}}}, but the row {row.get('id', '')!r:.60} has no such value; "
                f"expected one of {', '.join(sorted(set(row) - {'id'}))}"
            )
        values = {name: row[name] for name in self._placeholders}
        if fault := _fault(values):
            teacher, digest = self._teachers[0], f"row {len(self.rows)}"
            self._found[teacher.name, digest] = fault
        else:
            teacher = teacher_of(self._teachers, values)
            text = rendered(self._template, values)
            digest = digest_of_row(teacher.model, self._version, text)
            self.items[teacher.name].setdefault(digest, Item(digest, text))
        self.rows.append((row["id"], teacher.name, digest))

    def work(self, folder: Path, purse: Purse, purpose: str, asked: Asked, log: Callable[[str], None]) -> None:
        """Ask what is not known. Raises `TeacherError` when a teacher cannot be asked at all."""
        desks = []
        try:
            for teacher in self._teachers:
                if not (items := self.items[teacher.name]):
                    continue
                kept = Answers(folder / f"{teacher.name}.sqlite")
                desk = Desk(teacher, self._template, kept, purse, asked, log, purpose)
                desks.append(desk)
                known = kept.known(list(items))
                desk.found.update(known)
                desk.add(item for digest, item in items.items() if digest not in known)
            if waiting := [desk for desk in desks if desk.waits]:
                keys = [_key(desk.teacher) for desk in waiting]
                with asyncio.Runner(loop_factory=_new_loop) as runner:
                    runner.run(self._ask(waiting, keys, asked, log))
        finally:
            for desk in desks:
                desk.answers.__exit__(None, None, None)
                self._found |= {(desk.teacher.name, digest): kept for digest, kept in desk.found.items()}
                self._asked_now |= {(desk.teacher.name, digest) for digest in desk.asked_here}
        if problems := [desk.stopped for desk in desks if desk.stopped and not desk.spent.answered]:
            raise TeacherError("\n".join(problems))

    async def _ask(self, desks: list[Desk], keys: list[str | None], asked: Asked, log: Callable[[str], None]) -> None:
        progress = asyncio.create_task(_tell(desks, asked, log))
        tasks = [asyncio.create_task(desk.run(key)) for desk, key in zip(desks, keys, strict=True)]
        try:
            for task in asyncio.as_completed(tasks):
                await task
                if any(desk.stopped and not desk.spent.answered for desk in desks):
                    for desk in desks:  # a mistake in the settings: what is under way is read, nothing more is sent
                        desk.close()
        finally:
            progress.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def answers(self, asked: Asked) -> list[Answer]:
        """A row's answer, or none for one that was not asked. Counts them in the books."""
        found: list[Answer] = []
        for identity, teacher, digest in self.rows:
            kept = self._found.get((teacher, digest))
            if kept is None:
                asked.missing += 1
                continue
            if kept.rule is not None:
                asked.set_aside[kept.rule] += 1
            asked.by_teacher[teacher].rows += 1
            asked.reused += kept.paid and (teacher, digest) not in self._asked_now
            found.append(Answer(identity, teacher, kept.value, kept.rule, kept.measure, kept.reason,
                                kept.prompt_tokens, kept.answer_tokens))  # fmt: skip
        return found


def _fault(values: Mapping[str, Any]) -> Kept | None:
    """Why a row cannot be asked."""
    if missing := [name for name, value in values.items() if not isinstance(value, str)]:
        return Kept(None, "no_value", float(len(missing)), f"{', '.join(missing)}: there is no text")
    text = "".join(values.values())
    try:
        text.encode()
    except UnicodeEncodeError:
        return Kept(None, "no_value", None, "the text has half a character (a lone surrogate)")
    return None if text.strip() else Kept(None, "no_value", float(len(values)), "there is no text")


async def _tell(desks: list[Desk], asked: Asked, log: Callable[[str], None]) -> None:
    """Progress, from time to time."""
    started, known = time.monotonic(), sum(len(desk.found) for desk in desks)
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        done, left = sum(len(desk.found) for desk in desks) - known, sum(desk.waits for desk in desks)
        rate = done / (time.monotonic() - started)
        to_go = f", {_duration(left / rate)} to go" if rate else ""
        log(
            f"{done:,} of {done + left:,} rows answered ({known:,} were known before), {rate:,.1f} a second, "
            f"{asked.tokens:,} tokens, cost so far {told_cost(asked.cost)}{to_go}"
        )


def _new_loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _key(teacher: Teacher) -> str | None:
    """The teacher's key. Raises `TeacherError` when its variable holds none."""
    if teacher.key_variable is None:
        return None
    key = os.environ.get(teacher.key_variable, "").strip()
    if not key:
        raise TeacherError(f"teacher {teacher.name}: the environment variable {teacher.key_variable} is not set; "
                           "expected the key of its server there")  # fmt: skip
    if not key.isascii() or not key.isprintable():
        raise TeacherError(
            f"teacher {teacher.name}: {teacher.key_variable} holds characters that no key has; set it anew"
        )
    return key


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
