"""Keeps the gateway and the engines running: what crashed or hangs is started again.

    python -m khmer_assets.server.supervisor HOME PORT

It holds the public socket and lends it to the gateway (`gateway.py`, called with HOME and the socket's number), so that
users who come while the gateway starts again wait a moment instead of being refused. Which engines should run is read
from `server.json`.
"""

import math
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

from khmer_assets.server.engines import Engine
from khmer_assets.server.state import ModelServerError, ServerState, state_lock

GATEWAY = f"{__package__}.gateway"  # a process of its own: nothing of it is imported here
LOOK_SECONDS = 0.2
ENGINE_LOOK_SECONDS = 1.0
HEALTH_SECONDS = 10.0
UNHEALTHY_LOOKS = 3  # in a row, of an engine that was healthy before
LONGEST_PAUSE = 30.0


class Backoff:
    """When to start again something that ended: at once if it ran for `settled` seconds, else ever more slowly."""

    def __init__(self, settled: float) -> None:
        self.settled = settled
        self.next_start = 0.0
        self._pause = 0.0
        self._started = -math.inf

    def started(self) -> None:
        """Note a start."""
        now = time.monotonic()
        self._pause = 0.0 if now - self._started > self.settled else min(LONGEST_PAUSE, 2 * self._pause + 0.25)
        self._started = now
        self.next_start = now + self._pause


class Supervisor:
    """A loop over the gateway, and one over the engines, where an answer may be long in coming."""

    def __init__(self, home: Path, listener: socket.socket):
        self.home = home
        self.folder = home / "server"
        self.listener = listener
        self.gateway: subprocess.Popen[bytes] | None = None
        self.gateway_backoff = Backoff(settled=2)
        self.backoff: dict[int, Backoff] = {}
        self.unhealthy: dict[int, int] = {}  # looks in a row; an engine that has not been healthy yet is not in it

    def run(self) -> None:
        """Look until the process is ended."""
        threading.Thread(target=self.look_after_engines, daemon=True).start()
        while True:
            self.look_at_gateway()
            time.sleep(LOOK_SECONDS)

    def look_after_engines(self) -> None:
        """The loop over the engines; an error in one look must not end it."""
        checked = time.monotonic()
        while True:
            try:
                self.look_at_engines()
                if time.monotonic() - checked >= HEALTH_SECONDS:
                    checked = time.monotonic()
                    self.check_health()
            except Exception:
                traceback.print_exc()
            time.sleep(ENGINE_LOOK_SECONDS)

    def look_at_gateway(self) -> None:
        """Start the gateway, if it does not run."""
        if self.gateway is not None and self.gateway.poll() is None:
            return
        if time.monotonic() < self.gateway_backoff.next_start:
            return
        if self.gateway is not None:
            print(f"the gateway ended with status {self.gateway.returncode}; it is started again", flush=True)
        number = self.listener.fileno()
        command = [sys.executable, "-m", GATEWAY, str(self.home), str(number)]
        self.gateway = subprocess.Popen(command, pass_fds=[number])
        self.gateway_backoff.started()

    def look_at_engines(self) -> None:
        """Start the engines that should run and do not."""
        with state_lock(self.folder):  # or an engine that is being retired would be started again
            state = ServerState.read(self.folder)
            if state.release is None or state.stopped:
                return
            for port in state.ports:
                engine = Engine(self.folder, port)
                backoff = self.backoff.setdefault(port, Backoff(settled=120))
                if engine.process.is_running() or time.monotonic() < backoff.next_start:
                    continue
                try:
                    engine.start(state.release, state.adapters_of(state.release))
                except ModelServerError as error:
                    print(error, flush=True)
                print(f"the engine on port {port} is started", flush=True)
                self.unhealthy.pop(port, None)
                backoff.started()

    def check_health(self) -> None:
        """End engines that run but have stopped answering; the next look starts them again."""
        ports = ServerState.read(self.folder).ports
        for port in ports:
            engine = Engine(self.folder, port)
            if engine.answers_health():
                self.unhealthy[port] = 0
            elif port in self.unhealthy:
                self.unhealthy[port] += 1
                if self.unhealthy[port] >= UNHEALTHY_LOOKS:
                    print(f"the engine on port {port} does not answer and is ended", flush=True)
                    del self.unhealthy[port]
                    engine.process.stop()


def main() -> None:
    """Open the socket and look after everything."""
    # in a background job Dagster leaves SIGTERM as ignored as SIGINT is, and whoever it starts inherits that
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    home, port = sys.argv[1:]
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=2048)
    listener.set_inheritable(True)
    Supervisor(Path(home), listener).run()


if __name__ == "__main__":
    main()
