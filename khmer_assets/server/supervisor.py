"""Keeps the gateway and the engines running: what crashed or hangs is started again.

    python -m khmer_assets.server.supervisor HOME HOST PORT SOCKET

It inherits the public socket of that number, holds it and lends it to the gateway (`gateway.py`, called with HOME and
the socket's number), so that users who come while the gateway starts again wait a moment instead of being refused.
Which engines should run is read from `server.json`. A deployment that was killed is mended here: its lock is free, and
its traces are not.
"""

import math
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from khmer_assets.foundation.processes import stop_all
from khmer_assets.server import embedder, engines, gateway_process
from khmer_assets.server.engines import Engine, known_engines
from khmer_assets.server.gateway_process import GatewayProcess
from khmer_assets.server.state import EmbedderVersion, ModelServerError, ServerState, deployment_lock, state_lock

GATEWAY = f"{__package__}.gateway"  # a process of its own: nothing of it is imported here
LOOK_SECONDS = 0.2
ENGINE_LOOK_SECONDS = 1.0
HEALTH_SECONDS = 10.0
UNHEALTHY_LOOKS = 3  # in a row; one that starts may take longer
GATEWAY_STOP_SECONDS = 20.0  # it lets running answers end for a part of them
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
    """A loop over the gateway, and one over what may be long in answering."""

    def __init__(self, home: Path, host: str, port: int, public: socket.socket):
        self.home = home
        self.folder = home / "server"
        self.host = host
        self.port = port
        self.public = public
        self.gateway: subprocess.Popen[bytes] | None = None
        self.gateway_settings: dict[str, Any] = {}  # with which it was started
        self.gateway_started = self.gateway_ends = 0.0
        self.gateway_backoff = Backoff(settled=2)
        self.backoff: dict[int, Backoff] = {}
        self.unhealthy: dict[int, int] = {}  # looks in a row by port; what has not been healthy yet is not in it
        self.told = ""

    def run(self) -> None:
        """Look until the process is ended."""
        threading.Thread(target=self.look_again_and_again, daemon=True).start()
        while True:
            try:
                self.look_at_gateway()
            except Exception as error:
                self.tell(error)
            time.sleep(LOOK_SECONDS)

    def look_again_and_again(self) -> None:
        """The loop over the engines and over everybody's health; an error in one look must not end it."""
        checked = time.monotonic()
        while True:
            try:
                self.look_at_engines()
                self.mend()
                if time.monotonic() - checked >= HEALTH_SECONDS:
                    checked = time.monotonic()
                    self.check_gateway()
                    self.check_engines()
            except Exception as error:
                self.tell(error)
            time.sleep(ENGINE_LOOK_SECONDS)

    def tell(self, error: Exception) -> None:
        """Print an error, once as long as it stays the same."""
        text = str(error) if isinstance(error, ModelServerError) else "".join(traceback.format_exception(error))
        if text != self.told:
            self.told = text
            print(text, flush=True)

    def look_at_gateway(self) -> None:
        """Start the gateway, if it does not run; end it where it has to start with another certificate or none."""
        if self.gateway is not None and self.gateway.poll() is None:
            if self.gateway_ends:
                if time.monotonic() > self.gateway_ends:
                    self.gateway.kill()
            elif _certificate(ServerState.read(self.folder).gateway) != _certificate(self.gateway_settings):
                print("the gateway starts again with another certificate", flush=True)
                self.gateway.terminate()
                self.gateway_ends = time.monotonic() + GATEWAY_STOP_SECONDS
            return
        if time.monotonic() < self.gateway_backoff.next_start:
            return
        if self.gateway is not None:
            print(f"the gateway ended with status {self.gateway.returncode}; it is started again", flush=True)
        self.gateway_settings = ServerState.read(self.folder).gateway
        number = self.public.fileno()
        self.gateway_started, self.gateway_ends = time.monotonic(), 0.0
        self.unhealthy.pop(self.port, None)
        self.gateway = subprocess.Popen([sys.executable, "-m", GATEWAY, str(self.home), str(number)], pass_fds=[number])
        self.gateway_backoff.started()

    def check_gateway(self) -> None:
        """Kill a gateway that runs but has stopped answering; the next look starts it again."""
        gateway = self.gateway
        if gateway is None or gateway.poll() is not None or self.gateway_ends:
            return
        age = time.monotonic() - self.gateway_started
        if self.is_hanging(self.port, self.public_gateway().answers(), age > gateway_process.START_SECONDS):
            print("the gateway does not answer and is ended", flush=True)
            gateway.kill()

    def is_hanging(self, port: int, healthy: bool, should_be: bool) -> bool:
        """Note a look at what listens on a port; whether there were too many bad ones since it was or `should_be`."""
        if healthy:
            self.unhealthy[port] = 0
        elif should_be or port in self.unhealthy:
            self.unhealthy[port] = self.unhealthy.get(port, 0) + 1
            if self.unhealthy[port] >= UNHEALTHY_LOOKS:
                del self.unhealthy[port]
                return True
        return False

    def public_gateway(self) -> GatewayProcess:
        """The gateway as users find it."""
        return GatewayProcess(self.folder, self.host, self.port, _certificate(self.gateway_settings) is not None)

    def mend(self) -> None:
        """Undo what a killed deployment has left: engines that it stopped, and engines that are not those of a release
        and answer nobody.
        """
        state = ServerState.read(self.folder)
        if not state.paused and {engine.port for engine in known_engines(self.folder)} <= set(state.ports):
            return
        with deployment_lock(self.folder) as held:
            if not held:  # nobody was killed
                return
            state = ServerState.read(self.folder)
            if state.paused:
                print("a deployment was killed; what was served before is started again", flush=True)
                state = state.unpaused()
                state.write(self.folder)
            if (running := self.public_gateway().running()) is None:
                return
            for engine in known_engines(self.folder):
                if engine.port not in state.ports and not running.get(str(engine.port)):
                    print(f"the engine on port {engine.port} has nothing to do and is ended", flush=True)
                    engine.process.stop()

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
            self.look_at_embedder(state.embedder)

    def look_at_embedder(self, wanted: EmbedderVersion | None) -> None:
        """Start the embedder, if it should run and does not; end others."""
        stop_all(self.folder, "embedder-*", keep=(f"embedder-{wanted.port}",) if wanted else ())
        if wanted is None or embedder.process_of(self.folder, wanted.port).is_running():
            return
        backoff = self.backoff.setdefault(wanted.port, Backoff(settled=120))
        if time.monotonic() >= backoff.next_start:
            embedder.start(self.folder, wanted)
            print(f"the embedder {wanted.model} is started on port {wanted.port}", flush=True)
            self.unhealthy.pop(wanted.port, None)
            backoff.started()

    def check_engines(self) -> None:
        """End engines that run but do not answer; the next look starts them again."""
        state = ServerState.read(self.folder)
        if state.embedder is not None:
            process = embedder.process_of(self.folder, port := state.embedder.port)
            if self.is_hanging(port, Engine(self.folder, port).answers_health(), process.age() > engines.START_SECONDS):
                print(f"the embedder on port {port} does not answer and is ended", flush=True)
                process.stop()
        for port in state.ports:
            engine = Engine(self.folder, port)
            healthy = engine.answers_health()
            if self.is_hanging(port, healthy, engine.process.age() > engines.START_SECONDS):
                print(f"the engine on port {port} does not answer and is ended", flush=True)
                engine.process.stop()


def _certificate(settings: dict[str, Any]) -> tuple[str, str] | None:
    return (settings["tls_certificate"], settings["tls_key"]) if settings.get("tls_certificate") else None


def main() -> None:
    """Take the socket, which whoever started this has opened, and look after everything."""
    home, host, port, number = sys.argv[1:]
    public = socket.socket(fileno=int(number))
    public.set_inheritable(True)
    Supervisor(Path(home), host, int(port), public).run()


if __name__ == "__main__":
    main()
