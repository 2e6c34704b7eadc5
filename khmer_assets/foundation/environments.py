"""The environments that the Makefile builds, some of them while the graph runs already."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path


def wait_until_built(environment: Path) -> None:
    """Wait for as long as a build holds the lock of the environment's folder."""
    with suppress(FileNotFoundError):
        folder = os.open(environment, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_SH)
        finally:
            os.close(folder)
