"""The gateway as a process: started under its supervisor, looked at, and waited for.

What belongs here: what whoever deploys, and the supervisor, need to know of it. What does not: what it answers users
(`gateway.py`), and the supervisor's loops (`supervisor.py`).
"""

import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.processes import BackgroundProcess, stop_all
from khmer_assets.server.keys import secret
from khmer_assets.server.state import ModelServerError, ModelVersion, ServerState, state_lock

SUPERVISOR = f"{__package__}.supervisor"  # a process of its own, which imports this module
START_SECONDS = 60
ANSWER_SECONDS = 10.0
LEAVING_SECONDS = 5.0  # in which a gateway that is told to end must have closed its socket
LEAVING_LOOK_SECONDS = 0.02
LOOK_SECONDS = 0.1


class GatewayProcess:
    """The gateway on `host`:`port`, and its supervisor. `folder` holds the server's state; `tls`: whether it has a
    certificate.
    """

    def __init__(self, folder: Path, host: str, port: int, tls: bool):
        self.folder = folder
        self.host = host
        self.port = port
        self.process = BackgroundProcess(folder, f"gateway-{host}-{port}")
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        name = f"[{local}]" if ":" in local else local
        self.address = f"{'https' if tls else 'http'}://{name}:{port}"

    @property
    def key_file(self) -> Path:
        """The file that holds the API key of this machine's owner, whom no limits bind."""
        return self.folder / "api_key"

    def require_port(self) -> None:
        """Raise `ModelServerError` where it could not listen."""
        if not self.process.is_running():
            self._listener().close()

    def start(self) -> bool:
        """Start it under its supervisor, unless it runs or was stopped on purpose; True if it was started.

        Ends one that listens elsewhere. One that has lost its supervisor finishes its answers while the new one takes
        the requests that come. Raises `ModelServerError` where it cannot listen.
        """
        with state_lock(self.folder):  # a deployment may start it too, and `stop` must not be overtaken
            stop_all(self.folder, "gateway*", keep=(self.process.name,))  # where the recipe named before
            if self.process.is_running() or ServerState.read(self.folder).stopped:
                return False
            with self._listener() as public:  # from here on users wait, and are not refused
                command = [sys.executable, "-m", SUPERVISOR, str(self.folder.parent), self.host, str(self.port)]
                number = public.fileno()
                self.process.start([*command, str(number)], cwd=PROJECT, pass_fds=[number])
        return True

    def _listener(self) -> socket.socket:
        """The socket on which it listens; a gateway whose supervisor was killed gives its own up for it."""
        deadline = None
        while True:
            try:
                public = listener(self.host, self.port)
                break
            except OSError as error:
                if deadline is None and self.process.tell_to_end():
                    deadline = time.monotonic() + LEAVING_SECONDS
                elif deadline is None or time.monotonic() > deadline + LEAVING_SECONDS:
                    remedy = "end the program that listens there, or set serving.port and serving.host in the recipe"
                    place = f"port {self.port} of {self.host}"
                    message = f"the gateway cannot listen on {place} ({error.strerror}); {remedy}"
                    raise ModelServerError(message) from None
                elif time.monotonic() > deadline:
                    self.process.stop(seconds=0)  # it hangs
                time.sleep(LEAVING_LOOK_SECONDS)
        self.process.forget()  # it listens no more, and ends with its last answer
        return public

    def wait_until_serving(self, release: ModelVersion) -> None:
        """Return when it gives requests to engines of the release. Raises `ModelServerError` when it does not."""
        deadline = time.monotonic() + START_SECONDS
        while (health := self.health() or {}).get("release") != release.digest or health.get("status") != "ok":
            self.start()  # the supervisor may have been killed
            if time.monotonic() > deadline:
                log = self.process.end_of_log()
                raise ModelServerError(f"the gateway does not serve {release.names[1]} ({health}):\n{log}")
            time.sleep(LOOK_SECONDS)

    def answers(self) -> bool:
        """Whether it answers at all, be it that it serves nothing."""
        with suppress(httpx.HTTPError):
            return self.http().get("/openapi.json").status_code > 0
        return False

    def running(self) -> dict[str, int] | None:
        """Answers that run, by the port of their engine; None when it does not tell."""
        return (self.health() or {}).get("running")

    def health(self) -> dict[str, Any] | None:
        """What it tells of itself and of the engines; None when it does not."""
        with suppress(httpx.HTTPError, ValueError):
            return dict(self.http().get("/health").json())
        return None

    def http(self) -> httpx.Client:
        """A client that has the owner's key."""
        headers = {"Authorization": f"Bearer {secret(self.key_file)}"}
        # the certificate, where there is one, is for the name under which users know this machine
        settings: dict[str, Any] = {"timeout": ANSWER_SECONDS, "trust_env": False, "verify": False}
        return httpx.Client(base_url=self.address, headers=headers, **settings)


def listener(host: str, port: int) -> socket.socket:
    """The socket on which the gateway listens. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=2048)
