"""What each key has used, by day (UTC): `usage.sqlite` beside the keys.

What belongs here: counting, and what of a month is left. What does not: the limits of a minute, which no restart needs
to survive (`rate_limits.py`), and what each answer was (`audit_log.py`).
"""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

TABLE = """
CREATE TABLE IF NOT EXISTS usage (
    key TEXT NOT NULL, day TEXT NOT NULL, requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
    answer_tokens INTEGER NOT NULL, PRIMARY KEY (key, day)
) WITHOUT ROWID
"""
ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (key, day) DO UPDATE SET requests = requests + excluded.requests,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens, answer_tokens = answer_tokens + excluded.answer_tokens
"""
BUSY_SECONDS = 1.0  # as long as a write may wait for another gateway's, which ends with its last answer


class Used(NamedTuple):
    """What a key has used on one day."""

    key: str
    day: str
    requests: int
    prompt_tokens: int
    answer_tokens: int


class KeyUsage:
    """The counts in `<folder>/usage.sqlite`. A kill of the gateway loses none of answers that have ended."""

    def __init__(self, folder: Path):
        self.file = folder / "usage.sqlite"
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._waiting: Counter[tuple[str, str, int]] = Counter()  # what could not be written, by key, day and column

    def add(self, key: str, prompt_tokens: int, answer_tokens: int) -> None:
        """Count a request that has ended. Raises `OSError` where that cannot be kept yet: it is with the next one."""
        day = _now().date().isoformat()
        for column, count in enumerate((1, prompt_tokens, answer_tokens)):
            self._waiting[key, day, column] += count
        try:
            with self._opened() as connection:
                for one, on in {(one, on) for one, on, _ in self._waiting}:
                    connection.execute(ADD, [one, on, *(self._waiting[one, on, column] for column in range(3))])
        except sqlite3.Error as error:
            raise OSError(f"{self.file}: what keys have used is not written down yet ({error})") from None
        self._waiting.clear()

    def month(self, key: str) -> int:
        """Tokens of this calendar month (UTC), also those that are not written yet. Raises `OSError`."""
        first = _now().date().replace(day=1).isoformat()
        waiting = sum(
            count for (one, on, column), count in self._waiting.items() if one == key and on >= first and column
        )
        query = "SELECT total(prompt_tokens + answer_tokens) FROM usage WHERE key = ? AND day >= ?"
        try:
            with self._opened() as connection:
                return waiting + int(connection.execute(query, [key, first]).fetchone()[0])
        except sqlite3.Error as error:
            raise OSError(f"{self.file}: what keys have used cannot be read ({error})") from None

    def days(self, days: int, key: str | None = None) -> list[Used]:
        """The last so many days, of one key or all. Raises `OSError`."""
        first = (_now().date() - timedelta(days=days - 1)).isoformat()
        query = "SELECT * FROM usage WHERE day >= ? AND (key = ? OR ? IS NULL) ORDER BY day, key"
        try:
            with self._opened() as connection:
                return [Used(*row) for row in connection.execute(query, [first, key, key])]
        except sqlite3.Error as error:
            raise OSError(f"{self.file}: what keys have used cannot be read ({error})") from None

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """One transaction. The file may be moved away or mended between two of them."""
        try:
            connection = self._connected()
            with connection:
                yield connection
        except sqlite3.Error:
            self.close()
            raise

    def _connected(self) -> sqlite3.Connection:
        """The connection: opening one a request would take forty times as long."""
        inode = self.file.stat().st_ino if self.file.exists() else None
        if self._connection is None or inode != self._inode:
            self.close()
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.touch(mode=0o600)
            self._connection = sqlite3.connect(self.file, timeout=BUSY_SECONDS)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(TABLE)
            self._inode = self.file.stat().st_ino
        return self._connection

    def close(self) -> None:
        """Let go of the file until the next call."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def seconds_to_next_month() -> float:
    """Until the monthly tokens are there again."""
    now = _now()
    first = (now.replace(day=1) + timedelta(days=32)).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    return (first - now).total_seconds()


def _now() -> datetime:
    return datetime.now(UTC)
