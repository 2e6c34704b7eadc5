"""What a source that fetches has brought in so far, and what it has still to fetch: one SQLite file a source.

An item is one thing to fetch (a page, a record of an archive) under a key that names it. What fetching it gave is
stored in the transaction that marks it as done, so a killed refresh goes on where it was, with every item exactly
once. Rows are only ever added: what vanished from its host stays here.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, str | None]
Item = tuple[str, dict[str, Any]]

_TABLES = """
CREATE TABLE IF NOT EXISTS items (
    number INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, info TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS items_waiting ON items (number) WHERE NOT done;
CREATE TABLE IF NOT EXISTS rows (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL, digest TEXT UNIQUE NOT NULL, failed INTEGER NOT NULL,
    row BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS rows_failed ON rows (key) WHERE failed;
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Collection:
    """The items and rows of one source. Use it as a context manager, in one process at a time."""

    def __init__(self, file: Path):
        file.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(file, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_TABLES)

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add(self, items: Iterable[Item]) -> None:
        """Put items into the queue; those whose key is known stay as they are."""
        with self._transaction():
            self._add(items)

    def waiting(self, limit: int = -1) -> list[Item]:
        """The items that are not done, in the order in which they were added."""
        query = "SELECT key, info FROM items WHERE NOT done ORDER BY number LIMIT ?"
        return [(key, json.loads(info)) for key, info in self._connection.execute(query, [limit])]

    def items(self) -> list[Item]:
        """Every item, done or not, in the order in which they were added."""
        return [
            (key, json.loads(info))
            for key, info in self._connection.execute("SELECT key, info FROM items ORDER BY number")
        ]

    def info(self, key: str) -> dict[str, Any] | None:
        """What is known of an item, or None."""
        found = self._connection.execute("SELECT info FROM items WHERE key = ?", [key]).fetchone()
        return None if found is None else dict(json.loads(found[0]))

    def finish(
        self, key: str, rows: Iterable[Row], info: dict[str, Any] | None = None, found: Iterable[Item] = ()
    ) -> None:
        """Mark an item as done, and with it store its rows, what to remember of it, and the items that it led to.

        A row whose text this item gave before is not stored again. A failure (a row with a `rule`) stands until the
        item is finished again.
        """
        with self._transaction():
            self._add([(key, {}), *found])
            self._connection.execute("UPDATE items SET done = 1 WHERE key = ?", [key])
            if info is not None:
                self._connection.execute("UPDATE items SET info = ? WHERE key = ?", [json.dumps(info), key])
            self._connection.execute("DELETE FROM rows WHERE key = ? AND failed", [key])
            self._store((key, row) for row in rows)

    def store(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Add rows, each under its item's key, for sources that need no queue. Known ones are not stored again."""
        with self._transaction():
            self._store(rows)

    def reopen(self, keys: Iterable[str] | None = None) -> None:
        """Make items wait again, for a refresh: those named, else all."""
        with self._transaction():
            if keys is None:
                self._connection.execute("UPDATE items SET done = 0")
            else:
                self._connection.executemany("UPDATE items SET done = 0 WHERE key = ?", ([key] for key in keys))

    def note(self, name: str, value: str) -> None:
        """Remember something of the collection as a whole."""
        self._connection.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", [name, value])

    def noted(self, name: str) -> str | None:
        """What was noted under a name, or None."""
        found = self._connection.execute("SELECT value FROM notes WHERE name = ?", [name]).fetchone()
        return None if found is None else str(found[0])

    def counts(self) -> dict[str, int]:
        """How many items wait and are done, how many rows are there, and how many of them are failures."""
        one = self._connection.execute(
            "SELECT (SELECT count(*) FROM items WHERE NOT done), (SELECT count(*) FROM items WHERE done), "
            "(SELECT count(*) FROM rows), (SELECT count(*) FROM rows WHERE failed)"
        ).fetchone()
        return dict(zip(("waiting", "done", "rows", "failures"), one, strict=True))

    def rows(self) -> Iterator[Row]:
        """Every row, in the order in which it came, with an `id` that its item and its text decide."""
        for digest, row in self._connection.execute("SELECT digest, row FROM rows ORDER BY number"):
            yield {"id": digest, **json.loads(row.decode("utf-8", "surrogatepass"))}

    def _add(self, items: Iterable[Item]) -> None:
        self._connection.executemany(
            "INSERT OR IGNORE INTO items (key, info) VALUES (?, ?)", ((key, json.dumps(info)) for key, info in items)
        )

    def _store(self, rows: Iterable[tuple[str, Row]]) -> None:
        self._connection.executemany(
            "INSERT OR IGNORE INTO rows (key, digest, failed, row) VALUES (?, ?, ?, ?)",
            (
                (
                    key,
                    _digest(key, row),
                    row.get("rule") is not None,
                    json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass"),
                )
                for key, row in rows
            ),
        )

    def _transaction(self) -> "_Transaction":
        return _Transaction(self._connection)


class _Transaction:
    """sqlite3's own context manager does not begin one when isolation_level is None."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, error: object, *_: object) -> None:
        self._connection.execute("ROLLBACK" if error else "COMMIT")


def _digest(key: str, row: Row) -> str:
    content = "\0".join((key, row.get("rule") or "", row.get("text") or ""))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
