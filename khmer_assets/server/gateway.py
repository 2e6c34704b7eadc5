"""The front door: an OpenAI-compatible gateway before the engines, with keys, limits, audit records and metrics.

    python -m khmer_assets.server.gateway HOME SOCKET

The supervisor (`supervisor.py`) starts it and lends it the listening socket of that number. Which engines serve is read
from `server.json`, at each request and only when the file has changed: so a deployment switches all requests at once,
and the running ones end where they began.
"""

import resource
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn

from khmer_assets.foundation.files import file_version
from khmer_assets.server.gateway_settings import GatewaySettings, descriptors_missing, tls_context
from khmer_assets.server.http_protocol import BoundedProtocol
from khmer_assets.server.request_log import write_log
from khmer_assets.server.routes import application
from khmer_assets.server.state import ModelServerError, ServerState

RENEW_SECONDS = 5


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
        timeout_notify=RENEW_SECONDS,
    )
    config.load()
    if config.ssl is not None:
        config.callback_notify = renewal(settings, config.ssl)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=number)])


def renewal(settings: GatewaySettings, context: ssl.SSLContext) -> Callable[[], Awaitable[None]]:
    """What to call now and then: new connections get the certificate's files as they are, once they are a pair."""
    assert settings.tls_certificate is not None and settings.tls_key is not None, "https is spoken"
    files = (settings.tls_certificate, settings.tls_key)
    seen = [file_version(file) for file in files]

    async def renew() -> None:
        nonlocal seen
        if (found := [file_version(file) for file in files]) == seen:
            return
        seen = found
        try:
            tls_context(settings)  # one of the files may not be written yet
            context.load_cert_chain(*files)
        except (ModelServerError, OSError) as error:
            print(f"the former certificate is used: {error}", flush=True)
        else:
            print("the certificate was renewed", flush=True)

    return renew


if __name__ == "__main__":
    main()
