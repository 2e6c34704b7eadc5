"""Where the project keeps its state. Everything is under one folder; deleting it resets everything."""

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

HOME_VARIABLE = "KHMER_HOME"
PROJECT = Path(__file__).resolve().parents[2]

_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOTDIR, errno.EACCES, errno.EPERM}
_DATABASE_FAULTS = ("disk is full", "disk I/O error", "unable to open database file", "readonly database")


def home() -> Path:
    """The state folder: the environment variable KHMER_HOME, else `.khmer` in the project."""
    return Path(os.environ.get(HOME_VARIABLE) or PROJECT / ".khmer").resolve()


def disk_fault(error: BaseException) -> str | None:
    """What a full, missing or forbidden disk has to do with an error, in one line; None where it has nothing."""
    for one in _causes(error):
        if isinstance(one, OSError) and one.errno in _FAULTS:
            what = f"{one.filename or home()}: {one.strerror}"
        elif isinstance(one, FileExistsError) and Path(one.filename).is_file():  # where a folder should be made
            what = f"{one.filename}: Not a directory"
        elif isinstance(one, sqlite3.OperationalError) and any(fault in str(one) for fault in _DATABASE_FAULTS):
            what = f"{home()}: {one}"
        else:
            continue
        return f"{what}; make room, or name another state folder with {HOME_VARIABLE}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    following: BaseException | None = error
    while following is not None:
        yield following
        following = following.__cause__ or following.__context__
