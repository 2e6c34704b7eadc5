"""Background processes: found again by other commands, stopped with all that they started."""

import json
import socket
import sys
import time

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
    true = identity.read_text()
    identity.write_text(json.dumps({"pid": process.pid, "started": process.create_time() - 60}))
    assert not background.stop()
    assert process.is_running() and child.is_running()
    identity.write_text(true)
    assert background.stop()


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
