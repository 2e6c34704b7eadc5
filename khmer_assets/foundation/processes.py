"""Processes that outlive the command that started them: started once, found again, stopped whole."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from khmer_assets.foundation import launcher
from khmer_assets.foundation.launcher import identity_of

PORTS_TRIED = 200


# OpenMP's threads spin while they wait for each other, which halves the speed of training on cores that others use too;
# if they sleep at once, it is a quarter slower on cores that none does. So they spin for microseconds, then sleep.
PATIENT_THREADS = {"GOMP_SPINCOUNT": "10000"}


class PortInUse(Exception):
    """Another program listens where a server should."""


class BackgroundProcess:
    """One named process with its log `<folder>/<name>.log` and its identity in `<folder>/<name>.json`."""

    def __init__(self, folder: Path, name: str):
        self.name = name
        self.log = folder / f"{name}.log"
        self._identity = folder / f"{name}.json"

    def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start `command` in a session of its own, unless it runs already. `env` adds to the environment.

        It inherits the descriptors `pass_fds`. What a killed one has left behind is ended before. Raises `OSError`
        when it cannot be started.
        """
        if self.is_running():
            return
        self.stop()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        reading, writing = os.pipe()
        launching = [sys.executable, "-I", "-S", launcher.__file__, str(self._identity.absolute()), str(writing)]
        with open(reading, "rb") as problem:
            try:
                with self.log.open("ab") as log:
                    process = subprocess.Popen(
                        [*launching, *command],
                        env={**os.environ, **(env or {})},
                        cwd=cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        pass_fds=[writing, *pass_fds],
                    )
            finally:
                os.close(writing)
            if told := problem.read():
                process.wait()
                self._identity.unlink(missing_ok=True)
                raise OSError(told.decode())

    def is_running(self) -> bool:
        """Whether the process that was started is still there (a reused process id is not mistaken for it)."""
        return self._process() is not None

    def age(self) -> float:
        """Seconds since it was started; 0 when it does not run."""
        identity = self._read_identity()
        if identity is None or not self.is_running():
            return 0.0
        return time.clock_gettime(time.CLOCK_BOOTTIME) - float(identity["start_ticks"]) / os.sysconf("SC_CLK_TCK")

    def stop(self, seconds: float = 20) -> bool:
        """End the process and all of its session; True if there was one. What does not end in time is killed.

        What it started is ended also when the process itself was killed and left it behind.
        """
        family = self._family()
        for member in family:
            _signal(member, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=seconds)
        for member in alive:
            _signal(member, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=5)
        self._identity.unlink(missing_ok=True)
        return bool(family)

    def tell_to_end(self) -> bool:
        """Ask the process, and what it started or has left behind, to end, and do not wait; True if there was any."""
        family = self._family()
        for member in family:
            _signal(member, signal.SIGTERM)
        return bool(family)

    def forget(self) -> None:
        """Let what was told to end do so by itself: nothing of it is found here any more."""
        self._identity.unlink(missing_ok=True)

    def end_of_log(self, lines: int = 30) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _family(self) -> list[psutil.Process]:
        identity = self._read_identity()
        return _session(identity) if identity else []

    def _process(self) -> psutil.Process | None:
        identity = self._read_identity()
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            if identity is not None and identity_of(identity["pid"]) == identity:
                process = psutil.Process(identity["pid"])
                return process if process.status() != psutil.STATUS_ZOMBIE else None
        return None

    def _read_identity(self) -> dict[str, Any] | None:
        try:
            identity = json.loads(self._identity.read_text())
        except (FileNotFoundError, ValueError):  # none, or one that a loss of power has emptied
            return None
        return identity if isinstance(identity, dict) and identity.keys() == {"pid", "start_ticks", "boot"} else None


def how_it_ended(code: int) -> str:
    """What a process's exit code says, as `subprocess` gives it: its status, or the signal that killed it."""
    if code >= 0:
        return f"ended with status {code}"
    name = {number.value: number.name for number in signal.Signals}.get(-code, f"signal {-code}")
    if -code == signal.SIGKILL:
        return f"was killed ({name}), most often because memory ran out: free some, or make batches or models smaller"
    return f"was killed ({name})"


def stop_all(folder: Path, pattern: str, keep: tuple[str, ...] = ()) -> bool:
    """Stop the processes of `folder` whose names match `pattern` and are not in `keep`; True if one ran."""
    names = [file.stem for file in folder.glob(f"{pattern}.json") if file.stem not in keep]
    return any([BackgroundProcess(folder, name).stop() for name in names])


def _session(leader: dict[str, Any]) -> list[psutil.Process]:
    """The living processes of the session that the process of this identity has opened."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if identity_of(leader["pid"]) != leader:
            return []  # the number is another program's now, which it is only when nobody of that session is left
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) != leader["pid"]:
                continue
            identity = identity_of(process.pid)
            if identity["boot"] != leader["boot"] or int(identity["start_ticks"]) < leader["start_ticks"]:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:  # one may stay as long as the parent does not look
                members.append(process)
    return members


def require_free_port(port: int, purpose: str, remedy: str) -> None:
    """Raise `PortInUse` when something listens on 127.0.0.1:`port`."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise PortInUse(f"port {port}, where {purpose} should listen, is in use; {remedy}")


def free_ports(beside: int, count: int, taken: tuple[int, ...] = ()) -> list[int]:
    """So many ports beside `beside` on which nothing listens, and none of `taken`.

    Raises `PortInUse` when there are not enough of them.
    """
    ports: list[int] = []
    step = 1 if beside < 65_000 else -1
    for distance in range(1, PORTS_TRIED):
        port = beside + step * distance
        with contextlib.suppress(PortInUse):
            if len(ports) < count and port not in taken:
                require_free_port(port, "a server", "")
                ports.append(port)
    if len(ports) < count:
        raise PortInUse(f"no {count} free ports in the {PORTS_TRIED} beside {beside}")
    return ports


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
