"""The command line: each command is there under both names, and a user's mistake is one message."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy.pool import NullPool

from khmer_assets.commands import COMMANDS, main, stop
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


def test_a_state_folder_that_cannot_be_one_is_told_in_a_line(tmp_path):
    (tmp_path / "file").touch()
    for command in ("run", "stop", "benchmark"):
        told = khmer(command, program=MODULE, KHMER_HOME=str(tmp_path / "file"))
        assert told.returncode == 2
        (line,) = told.stderr.splitlines()
        assert line.startswith(str(tmp_path / "file")) and "Not a directory; make room, or name another" in line


@pytest.mark.parametrize("words", ["keys create sokha", "benchmark"])
def test_a_full_disk_is_told_in_a_line(tmp_path, words):
    small = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    fill = f"mount -t tmpfs -o size=64k tmpfs {tmp_path} && cat /dev/zero > {tmp_path}/zeros 2>/dev/null"
    if subprocess.run([*small, f"{fill}; test -f {tmp_path}/zeros"], capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one")
    told = khmer(f"{fill}; {sys.executable} -m khmer_assets {words}", program=small, KHMER_HOME=str(tmp_path))
    assert told.returncode == 2
    (line,) = told.stderr.splitlines()
    assert line.startswith(str(tmp_path)) and "make room, or name another state folder with KHMER_HOME" in line


def test_who_interrupts_a_command_while_it_leaves_a_database_sees_no_traceback(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("KHMER_HOME", str(tmp_path))
    engine = sqlalchemy.create_engine("sqlite://", poolclass=NullPool)
    monkeypatch.setattr(engine.dialect, "do_close", lambda connection: signal.raise_signal(signal.SIGTERM))
    monkeypatch.setattr(stop, "main", lambda arguments: engine.connect().close())
    monkeypatch.setattr(sys, "argv", ["khmer", "stop"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main() == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "stopped; the next run goes on from here\n" and not caplog.text
