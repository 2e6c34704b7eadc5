"""The environments that the Makefile builds, some of them while the graph runs already."""

import fcntl
import os
import sys
from contextlib import suppress
from pathlib import Path

from khmer_assets.foundation.home import PROJECT

MAIN = Path(sys.prefix)
VLLM = PROJECT / ".venv-vllm"
SPARED_CORE_VARIABLE = "KHMER_SPARED_CORE"  # set where a payload leaves a core to builds


def wait_until_built(environment: Path) -> None:
    """Wait for as long as a build holds the lock of the environment's folder."""
    _lock_and_release(environment, fcntl.LOCK_SH)


def builds_go_on() -> bool:
    """Whether any of the environments is being built."""
    return any(map(is_being_built, (MAIN, VLLM)))


def is_being_built(environment: Path) -> bool:
    """Whether a build holds the lock of the environment's folder."""
    try:
        _lock_and_release(environment, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _lock_and_release(environment: Path, how: int) -> None:
    with suppress(FileNotFoundError):
        folder = os.open(environment, os.O_RDONLY)
        try:
            fcntl.flock(folder, how)
        finally:
            os.close(folder)
