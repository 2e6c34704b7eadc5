"""Versions of files: digests of their content, taken again only where the disk says that a file may have changed.

As git's index does, a small database in the state folder remembers each local file's size, times and inode with its
digest. Losing it costs time and nothing else.
"""

import hashlib
import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

from upath import UPath

from khmer_assets.foundation.home import home
from khmer_assets.foundation.settings import digest_of

DATABASE = "file_versions.sqlite"
SETTLED = 2.0  # seconds; what was changed more recently may change again without another time


def version_of(file: UPath) -> str:
    """A digest that changes when the file does: of its content where it is local, else of what its host says of it.

    Raises `OSError`, or what the host's library raises, for a file that cannot be read.
    """
    if file.protocol in ("", "file"):
        return _local_version(Path(file.path))
    return digest_of({name: str(value) for name, value in file.fs.info(file.path).items()})


def versions_of(files: Iterable[UPath]) -> list[str]:
    """The version of each file; of one that cannot be read, why not: so that the others are still looked at."""
    versions = []
    for file in files:
        try:
            versions.append(version_of(file))
        except Exception as error:  # each protocol's library raises its own
            versions.append(f"unreadable: {error!r:.200}")
    return versions


def _local_version(file: Path) -> str:
    state = _state(file)
    if not file.is_file():
        raise OSError(f"{file} is a folder, a pipe or a device, expected a file")
    with suppress(sqlite3.Error, OSError):  # what is remembered saves time, and nothing else
        query = "SELECT digest FROM files WHERE path = ? AND state = ?"
        if remembered := _database(home() / DATABASE).execute(query, [str(file), state]).fetchone():
            return str(remembered[0])
    read_at = time.time()
    with file.open("rb") as stream:
        digest = hashlib.file_digest(cast(Any, stream), "sha256").hexdigest()
    about = file.stat()
    if _state(file) == state and max(about.st_mtime, about.st_ctime) + SETTLED < read_at:
        with suppress(sqlite3.Error, OSError):
            replace = "INSERT OR REPLACE INTO files VALUES (?, ?, ?)"
            _database(home() / DATABASE).execute(replace, [str(file), state, digest])
    return digest


def _state(file: Path) -> str:
    """What differs after a file was written or replaced."""
    found = file.stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_dev} {found.st_ino}"


@cache
def _database(file: Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(file, isolation_level=None, timeout=1, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    database.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, state TEXT, digest TEXT)")
    return database
