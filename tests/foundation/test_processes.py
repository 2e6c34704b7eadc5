"""Background processes: found again by other commands, stopped with all that they started."""

import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from typing import IO

import psutil
import pytest

from khmer_assets.foundation.processes import BackgroundProcess, PortInUse, require_free_port

SLEEP = "import time; time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); {SLEEP}"


def started(folder) -> tuple[BackgroundProcess, psutil.Process, psutil.Process]:
    """A process that has started another one."""
    background = BackgroundProcess(folder, "sleeper")
    background.start([sys.executable, "-c", PARENT])
    process = background._process()
    assert process is not None
    deadline = time.monotonic() + 20
    while not process.children() and time.monotonic() < deadline:
        time.sleep(0.02)
    return background, process, process.children()[0]


def test_it_is_found_again_and_stopped_whole(tmp_path):
    _, process, child = started(tmp_path)
    again = BackgroundProcess(tmp_path, "sleeper")
    assert again.is_running()
    assert again.stop()
    assert not process.is_running() and not child.is_running()
    assert not again.stop()


def test_what_a_killed_process_left_behind_is_ended_too(tmp_path):
    background, process, child = started(tmp_path)
    process.kill()
    process.wait()
    assert not background.is_running()
    assert background.stop()
    assert not child.is_running()


def test_another_program_that_got_the_number_of_a_dead_one_is_left_alone(tmp_path):
    background, process, child = started(tmp_path)
    identity = tmp_path / "sleeper.json"
    true = json.loads(identity.read_text())
    for another in ({"start_ticks": true["start_ticks"] - 6000}, {"boot": "before the restart of the machine"}):
        identity.write_text(json.dumps({**true, **another}))
        assert not background.is_running()
        assert not background.stop()
        assert process.is_running() and child.is_running()
    identity.write_text(json.dumps(true))
    assert background.stop()


def test_a_clock_that_jumps_makes_no_process_look_dead(tmp_path, monkeypatch):
    background, process, child = started(tmp_path)
    at, before = psutil._pslinux.boot_time(), process.create_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: at + 3600)  # as the kernel tells when it was set
    assert psutil.Process(process.pid).create_time() == before + 3600
    assert background.is_running()
    assert background.age() < 600
    assert background.stop()
    assert not child.is_running()


def test_what_is_started_by_one_who_ignores_signals_ends_when_it_is_told_to(tmp_path):
    script = "import pathlib, sys, tests.foundation.test_processes as t; t.started(pathlib.Path(sys.argv[1]))"
    ignoring = ["bash", "-c", 'trap "" INT TERM; exec "$@"', "bash"]
    subprocess.run([*ignoring, sys.executable, "-c", script, str(tmp_path)], check=True)
    background = BackgroundProcess(tmp_path, "sleeper")
    process = background._process()
    assert process is not None
    process.send_signal(signal.SIGTERM)
    psutil.wait_procs([process], timeout=10)
    assert not background.is_running()
    background.stop()


def test_a_starter_that_is_killed_leaves_nothing_running_that_nobody_knows(tmp_path):
    background = BackgroundProcess(tmp_path, "sleeper")
    script = f"""
import sys
from pathlib import Path
from khmer_assets.foundation.processes import BackgroundProcess
background = BackgroundProcess(Path({str(tmp_path)!r}), "sleeper")
print("now", flush=True)
background.start(["sleep", "60"], pass_fds=[int(sys.argv[1])])
"""
    for _ in range(12):
        reading, writing = os.pipe()  # it ends with the last of those that the starter has begun, whatever they run
        starter = subprocess.Popen(
            [sys.executable, "-c", script, str(writing)], stdout=subprocess.PIPE, pass_fds=[writing]
        )
        os.close(writing)
        with open(reading, "rb") as held, starter:
            assert starter.stdout is not None
            assert starter.stdout.readline() == b"now\n"
            time.sleep(random.uniform(0, 0.03))
            starter.kill()
            starter.wait()
            deadline = time.monotonic() + 20
            while not _ended(held, 0.02) and not background.is_running() and time.monotonic() < deadline:
                pass  # what it has begun is about to note who it is
            background.stop()
            assert _ended(held, 20)


def _ended(pipe: IO[bytes], seconds: float) -> bool:
    return bool(select.select([pipe], [], [], seconds)[0])


def test_a_command_that_is_not_there_is_told(tmp_path):
    background = BackgroundProcess(tmp_path, "nothing")
    with pytest.raises(OSError, match=r"/nowhere/program: .*No such file"):
        background.start(["/nowhere/program"])
    assert not background.is_running()


def test_starting_twice_starts_once(tmp_path):
    background, process, _ = started(tmp_path)
    background.start([sys.executable, "-c", PARENT])
    assert background._process() == process
    background.stop()


def test_a_port_in_use_is_told_with_the_remedy():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port}, where the UI should listen, is in use; set another"):
            require_free_port(port, "the UI", "set another")
    require_free_port(port, "the UI", "set another")
