"""The command line: each command is there under both names, and a user's mistake is one message."""

import subprocess
import sys
from pathlib import Path

import pytest

from khmer_assets.commands import COMMANDS
from khmer_assets.foundation.home import PROJECT

CONSOLE = [str(Path(sys.executable).parent / "khmer")]
MODULE = [sys.executable, "-m", "khmer_assets"]


def khmer(*words: str, program: list[str] = CONSOLE, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*program, *words], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("program", [CONSOLE, MODULE])
def test_help_names_every_command(program):
    shown = khmer("--help", program=program)
    assert shown.returncode == 0
    assert all(f"    {name}" in shown.stdout for name in COMMANDS)


def test_a_mistake_is_told_without_a_traceback(tmp_path):
    told = khmer("ask", "សួស្តី", KHMER_HOME=str(tmp_path), KHMER_RECIPE=str(tmp_path / "none.yaml"))
    assert told.returncode == 2
    assert told.stderr.strip().startswith(str(tmp_path / "none.yaml"))
    assert "Traceback" not in told.stderr
