"""What the steps need from outside, as real servers on this machine: a site, and an object store."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import s3fs

from benchmarks.chaos.kills import waited
from khmer_assets.foundation.processes import free_ports
from resources.storage import STORE_VARIABLE

STORE = "s3://factory/store"
NEW_PAGES = 30  # of the site, each refresh


@contextmanager
def site() -> Iterator[str]:
    """A site whose start page links to `NEW_PAGES` more pages each time that it is asked for."""
    known = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal known
            if self.path == "/":
                known += NEW_PAGES
                body = "".join(f'<a href="/{number}">{number}</a> ' for number in range(known))
            elif self.path == "/robots.txt":
                body = "User-agent: *\nAllow: /"
            else:
                paragraph = f"<p>ទំព័រទី {self.path[1:]} និយាយអំពីអ្នកនេសាទដែលចេញទៅសមុទ្រតាំងពីព្រលឹម ហើយត្រឡប់មកវិញនៅពេលល្ងាច។</p>"
                body = f"<html><title>{self.path}</title><body><article>{paragraph * 4}</article></body></html>"
            content = body.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()


@contextmanager
def object_store(folder: Path) -> Iterator[None]:
    """An S3 server with the bucket of `STORE`, which this process and its children find by their environment."""
    (port,) = free_ports(5600, 1)
    with (folder / "s3.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log
        )
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        STORE_VARIABLE: STORE,
    }
    try:

        def made() -> bool:
            with suppress(OSError):
                s3fs.S3FileSystem(skip_instance_cache=True).mkdir("factory")
                return True
            return False

        if waited(made, 60) is None:
            raise RuntimeError(f"moto's server does not start: {(folder / 's3.log').read_text()}")
        yield
    finally:
        server.kill()
