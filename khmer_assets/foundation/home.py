"""Where the project keeps its state. Everything is under one folder; deleting it resets everything."""

import os
from pathlib import Path

HOME_VARIABLE = "KHMER_HOME"
PROJECT = Path(__file__).resolve().parents[2]


def home() -> Path:
    """The state folder: the environment variable KHMER_HOME, else `.khmer` in the project."""
    return Path(os.environ.get(HOME_VARIABLE) or PROJECT / ".khmer").resolve()
