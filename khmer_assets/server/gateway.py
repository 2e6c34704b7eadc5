"""The front door: an OpenAI-compatible gateway before the engines, with keys, limits, audit records and metrics.

    python -m khmer_assets.server.gateway HOME SOCKET

The supervisor (`supervisor.py`) starts it and lends it the listening socket of that number. Which engines serve is read
from `server.json`, at each request and only when the file has changed: so a deployment switches all requests at once,
and the running ones end where they began.
"""

import resource
import socket
import sys
from pathlib import Path

import uvicorn

from khmer_assets.server.gateway_settings import GatewaySettings, descriptors_missing
from khmer_assets.server.http_protocol import BoundedProtocol
from khmer_assets.server.request_log import write_log
from khmer_assets.server.routes import application
from khmer_assets.server.state import ModelServerError, ServerState


def main() -> None:
    """Serve on the socket of the given number until SIGTERM; running answers may end."""
    home, number = Path(sys.argv[1]), int(sys.argv[2])
    write_log(home / "server")
    try:
        settings = GatewaySettings.model_validate(ServerState.read(home / "server").gateway)
    except ModelServerError as error:
        sys.exit(str(error))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # what shells give suffices for some hundred requests
    if missing := descriptors_missing(settings):
        print(missing, flush=True)
    BoundedProtocol.seconds = settings.body_seconds + 10
    config = uvicorn.Config(
        application(home),
        http=BoundedProtocol,
        loop="uvloop",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=15,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=number)])


if __name__ == "__main__":
    main()
