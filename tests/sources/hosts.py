"""Outside hosts as real servers on this machine: what answers is a function of the request."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """`query` holds the first value of each parameter."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass(frozen=True)
class Response:
    """A Content-Length is added unless given; parts of a body are sent as they come, until the connection ends."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Answering = Callable[[Request], Response]


@contextmanager
def host(answer: Answering) -> Iterator[str]:
    """The address of a server that answers with `answer` while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            response = answer(Request(self.command, unquote(parts.path), query, dict(self.headers)))
            body = [response.body] if isinstance(response.body, bytes) else response.body
            length = {"Content-Length": str(len(body[0]))} if isinstance(body, list) else {"Connection": "close"}
            try:
                self.send_response(response.status)
                for name, value in {**length, **response.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for block in body if self.command == "GET" else []:
                    self.wfile.write(block)
            except ConnectionError:  # the client has heard enough
                self.close_connection = True

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def part(content: bytes, request: Request) -> Response:
    """`content`, or the bytes of it that the request's Range asks for."""
    wanted = next((value for name, value in request.headers.items() if name.lower() == "range"), None)
    if wanted is None:
        return Response(content, headers={"Accept-Ranges": "bytes"})
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(int(last) if last else len(content) - 1, len(content) - 1)
    return Response(content[start : end + 1], 206, {"Content-Range": f"bytes {start}-{end}/{len(content)}"})
