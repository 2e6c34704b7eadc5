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
from khmer_assets.server.state import ModelServerError, ModelVersion

SUPERVISOR = f"{__package__}.supervisor"  # a process of its own, which imports this module
START_SECONDS = 60
ANSWER_SECONDS = 10.0
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
        """Raise `ModelServerError` where it cannot listen. Ends one that listens elsewhere."""
        stop_all(self.folder, "gateway*", keep=(self.process.name,))  # where the recipe named before
        if self.process.is_running():
            return
        self.process.stop()  # a gateway whose supervisor was killed
        try:
            listener(self.host, self.port).close()
        except OSError as error:
            remedy = "end the program that listens there, or set serving.port and serving.host in the recipe"
            message = f"the gateway cannot listen on port {self.port} of {self.host} ({error.strerror}); {remedy}"
            raise ModelServerError(message) from None

    def start(self) -> None:
        """Start it under its supervisor, unless it runs. Raises `ModelServerError` as `require_port` does."""
        self.require_port()
        home = str(self.folder.parent)
        self.process.start([sys.executable, "-m", SUPERVISOR, home, self.host, str(self.port)], cwd=PROJECT)

    def wait_until_serving(self, release: ModelVersion) -> None:
        """Return when it gives requests to engines of the release. Raises `ModelServerError` when it does not."""
        deadline = time.monotonic() + START_SECONDS
        while (health := self.health() or {}).get("release") != release.digest or health.get("status") != "ok":
            if time.monotonic() > deadline or not self.process.is_running():
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
