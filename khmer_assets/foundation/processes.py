"""Processes that outlive the command that started them: started once, found again, stopped whole."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

PORTS_TRIED = 200


class PortInUse(Exception):
    """Another program listens where a server should."""


class BackgroundProcess:
    """One named process with its log `<folder>/<name>.log` and its identity in `<folder>/<name>.json`."""

    def __init__(self, folder: Path, name: str):
        self.name = name
        self.log = folder / f"{name}.log"
        self._identity = folder / f"{name}.json"

    def start(self, command: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        """Start `command` in a session of its own, unless it runs already. `env` adds to the environment."""
        if self.is_running():
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        identity = {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
        aside = self._identity.with_suffix(".aside")
        aside.write_text(json.dumps(identity))
        os.replace(aside, self._identity)

    def is_running(self) -> bool:
        """Whether the process that was started is still there (a reused process id is not mistaken for it)."""
        return self._process() is not None

    def stop(self, seconds: float = 20) -> bool:
        """End the process and all of its session; True if there was one. What does not end in time is killed.

        What it started is ended also when the process itself was killed and left it behind.
        """
        identity = self._read_identity()
        family = _session(*identity) if identity else []
        for member in family:
            _signal(member, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=seconds)
        for member in alive:
            _signal(member, signal.SIGKILL)
        psutil.wait_procs(alive, timeout=5)
        self._identity.unlink(missing_ok=True)
        return bool(family)

    def end_of_log(self, lines: int = 30) -> str:
        """The last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _process(self) -> psutil.Process | None:
        identity = self._read_identity()
        with contextlib.suppress(psutil.NoSuchProcess):
            if identity is not None:
                process = psutil.Process(identity[0])
                if process.create_time() == identity[1] and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    def _read_identity(self) -> tuple[int, float] | None:
        try:
            identity = json.loads(self._identity.read_text())
            return int(identity["pid"]), float(identity["started"])
        except FileNotFoundError:
            return None


def stop_all(folder: Path, pattern: str, keep: tuple[str, ...] = ()) -> bool:
    """Stop the processes of `folder` whose names match `pattern` and are not in `keep`; True if one ran."""
    names = [file.stem for file in folder.glob(f"{pattern}.json") if file.stem not in keep]
    return any([BackgroundProcess(folder, name).stop() for name in names])


def _session(leader: int, started: float) -> list[psutil.Process]:
    """The living processes of the session that `leader` opened at `started` (seconds since the epoch)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if psutil.Process(leader).create_time() != started:
            return []  # the number is another program's now, which it is only when nobody of that session is left
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) != leader or process.create_time() < started:
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
