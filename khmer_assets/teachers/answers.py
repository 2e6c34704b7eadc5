"""What teachers have answered so far, and what that took: one SQLite file a teacher, for every asset and process.

An answer is here before it counts, so a kill loses nothing but what was on its way. Before a request is sent it stands
here too, with the rows that it asks for: two processes do not ask for the same row, and the books know of requests
whose answer nobody lived to read. Answers and requests are only ever added.
"""

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from khmer_assets.foundation.files import in_turn
from khmer_assets.foundation.launcher import identity_of
from khmer_assets.teachers.limits import Size

LOST = "lost"  # the outcome of a request whose process died
ANSWERED = "answered"
BUSY_SECONDS = 60.0  # for another process to end its transaction, which takes milliseconds
AT_ONCE = 500  # digests of a query

_TABLES = """
CREATE TABLE IF NOT EXISTS owners (number INTEGER PRIMARY KEY, name TEXT NOT NULL, process TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY, owner INTEGER NOT NULL, purpose TEXT NOT NULL, rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL, sent REAL NOT NULL, ended REAL, outcome TEXT, prompt_tokens INTEGER NOT NULL,
    answer_tokens INTEGER NOT NULL, cost REAL
);
CREATE INDEX IF NOT EXISTS requests_sent ON requests (sent);
CREATE INDEX IF NOT EXISTS requests_under_way ON requests (owner) WHERE ended IS NULL;
CREATE TABLE IF NOT EXISTS answers (
    digest TEXT PRIMARY KEY, request INTEGER NOT NULL, value TEXT, rule TEXT, measure REAL, reason TEXT,
    prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (digest TEXT PRIMARY KEY, request INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Kept:
    """One row's answer: its value, or rule, measure and reason for which it has none; and its part of the tokens."""

    value: dict[str, Any] | None
    rule: str | None
    measure: float | None
    reason: str | None
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def paid(self) -> bool:
        """Whether a teacher has answered; else it was set aside before."""
        return self.prompt_tokens + self.answer_tokens > 0


@dataclass(frozen=True)
class Past:
    """Sums over requests that were answered; `bytes` are those of the prompts."""

    rows: int
    bytes: int
    prompt_tokens: int
    answer_tokens: int


class Answers:
    """One teacher's file, opened for one call. Use it as a context manager; `change` around what belongs together.

    `name` is unique to this opening and stands in the id of its requests.
    """

    def __init__(self, file: Path):
        self.name = uuid.uuid4().hex[:12]
        with in_turn(file.parent):  # SQLite does not wait for another that turns the file to WAL
            self._connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_TABLES)
        with self.change():
            process = json.dumps(identity_of(os.getpid()))
            query = "INSERT INTO owners (name, process) VALUES (?, ?)"
            self._owner = int(self._connection.execute(query, [self.name, process]).lastrowid or 0)
            (self._seen,) = self._connection.execute("SELECT coalesce(max(number), 0) FROM requests").fetchone()
            self.shared = self.under_way_elsewhere() > 0  # with other processes, also dead ones

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error), self.change():  # of a full disk, say, which has been told by then
            self._give_up([self._owner])
        self._connection.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """One transaction, which other processes see whole or not at all."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def known(self, digests: Sequence[str]) -> dict[str, Kept]:
        """The answers that are here, by digest."""
        found = {}
        for start in range(0, len(digests), AT_ONCE):
            some = digests[start : start + AT_ONCE]
            query = (
                "SELECT digest, value, rule, measure, reason, prompt_tokens, answer_tokens FROM answers "
                f"WHERE digest IN ({','.join('?' * len(some))})"
            )
            for digest, value, *rest in self._connection.execute(query, some):
                found[digest] = Kept(None if value is None else json.loads(value), *rest)
        return found

    def claimed_elsewhere(self, digests: Sequence[str]) -> set[str]:
        """Those of the rows that a living process is just asking for."""
        query = f"SELECT digest FROM claims WHERE digest IN ({','.join('?' * len(digests))})"
        return {digest for (digest,) in self._connection.execute(query, list(digests))}

    def begin(self, digests: Sequence[str], purpose: str, size: int, guess: Size) -> int:
        """Note a request of `size` bytes that is about to be sent; return its number."""
        query = (
            "INSERT INTO requests (owner, purpose, rows, bytes, sent, prompt_tokens, answer_tokens) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        values = (self._owner, purpose, len(digests), size, time.time(), guess.prompt, guess.answer)
        number = self._seen = int(self._connection.execute(query, values).lastrowid or 0)
        self._connection.executemany("INSERT INTO claims VALUES (?, ?)", [(digest, number) for digest in digests])
        return number

    def end(
        self, number: int, digests: Sequence[str], outcome: str, took: Size, cost: float | None, kept: dict[str, Kept]
    ) -> None:
        """Note what became of a request, and with it the answers for its rows."""
        query = "UPDATE requests SET ended = ?, outcome = ?, prompt_tokens = ?, answer_tokens = ?, cost = ? "
        values = (time.time(), outcome, took.prompt, took.answer, cost, number)
        self._connection.execute(query + "WHERE number = ?", values)
        self._connection.executemany("DELETE FROM claims WHERE digest = ?", [(digest,) for digest in digests])
        self._connection.executemany(
            "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (digest, number, None if one.value is None else json.dumps(one.value, ensure_ascii=False), one.rule,
                 one.measure, one.reason, one.prompt_tokens, one.answer_tokens)
                for digest, one in kept.items()
            ],
        )  # fmt: skip

    def sent_elsewhere(self) -> tuple[int, Size]:
        """How many requests other processes have sent since the last call, and the tokens that they were to take."""
        query = (
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(answer_tokens), 0), max(number) "
            "FROM requests WHERE number > ? AND owner <> ?"
        )
        requests, prompt, answer, last = self._connection.execute(query, [self._seen, self._owner]).fetchone()
        self._seen = last or self._seen
        self.shared = self.shared or requests > 0
        return requests, Size(prompt, answer)

    def recent(self, seconds: float) -> list[tuple[float, Size]]:
        """The requests of the last seconds, the oldest first: how long ago, and what they took or were to take."""
        query = "SELECT sent, prompt_tokens, answer_tokens FROM requests WHERE sent BETWEEN ? AND ? ORDER BY sent"
        now = time.time()
        found = self._connection.execute(query, [now - seconds, now])
        return [(now - sent, Size(prompt, answer)) for sent, prompt, answer in found]

    def past(self, purpose: str) -> "Past | None":
        """What this purpose's answers took so far, or None where there are none."""
        query = (
            "SELECT sum(rows), sum(bytes), sum(prompt_tokens), sum(answer_tokens) FROM requests "
            "WHERE purpose = ? AND outcome = ?"
        )
        found = self._connection.execute(query, [purpose, ANSWERED]).fetchone()
        return Past(*found) if found[0] else None

    def under_way_elsewhere(self) -> int:
        """How many requests of other processes have not ended."""
        query = "SELECT count(*) FROM requests WHERE ended IS NULL AND owner <> ?"
        return int(self._connection.execute(query, [self._owner]).fetchone()[0])

    def bury(self) -> int:
        """Give up what dead processes had under way, so that it is asked again; return how many requests that were."""
        query = "SELECT DISTINCT o.number, o.process FROM requests r JOIN owners o ON o.number = r.owner "
        open_ones = self._connection.execute(f"{query} WHERE r.ended IS NULL AND r.owner <> ?", [self._owner])
        return self._give_up([number for number, process in open_ones if not _lives(json.loads(process))])

    def _give_up(self, owners: Iterable[int]) -> int:
        lost = 0
        for owner in owners:
            under_way = "SELECT number FROM requests WHERE owner = ? AND ended IS NULL"
            self._connection.execute(f"DELETE FROM claims WHERE request IN ({under_way})", [owner])
            query = "UPDATE requests SET ended = ?, outcome = ? WHERE owner = ? AND ended IS NULL"
            lost += self._connection.execute(query, [time.time(), LOST, owner]).rowcount
        return lost


def _lives(process: dict[str, Any]) -> bool:
    try:
        return identity_of(int(process["pid"])) == process
    except (FileNotFoundError, ProcessLookupError):
        return False


def costs_by_day(folder: Path) -> pl.DataFrame:
    """What each teacher took on each day (UTC), for each purpose.

    `lost` are requests whose answer nobody read; what they took is not known. `cost` is null where a price was missing.
    """
    schema = {"day": pl.String, "teacher": pl.String, "purpose": pl.String, "requests": pl.Int64, "lost": pl.Int64,
              "prompt_tokens": pl.Int64, "answer_tokens": pl.Int64, "cost": pl.Float64}  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    query = (
        "SELECT date(sent, 'unixepoch') AS day, ?1, purpose, count(*), sum(outcome = ?2), "
        "sum(prompt_tokens * (outcome = ?3)), sum(answer_tokens * (outcome = ?3)), "
        "CASE WHEN sum(outcome = ?3 AND cost IS NULL) THEN NULL ELSE coalesce(sum(cost), 0) END "
        "FROM requests WHERE ended IS NOT NULL GROUP BY day, purpose"
    )
    for file in sorted(folder.glob("*.sqlite")):
        address = f"{file.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as connection:
            rows += connection.execute(query, [file.stem, LOST, ANSWERED]).fetchall()
    return pl.DataFrame(rows, schema=schema, orient="row").sort("day", "teacher", "purpose")
