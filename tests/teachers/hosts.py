"""Teachers' servers on this machine that speak the protocol: what they answer is a function of the request."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from benchmarks.open_model import gguf
from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.processes import PATIENT_THREADS, free_ports
from khmer_assets.server import llama_cpp
from khmer_assets.teachers.asking import Answer, Asked, ask
from khmer_assets.teachers.settings import Budget, Teacher, Template

KEY = "sk-khmer-0123456789-secret"
TOPICS = Template(
    text="{text}",
    system="តើអត្ថបទនេះនិយាយអំពីអ្វី?",
    answer_schema={"type": "object", "properties": {"topic": {"enum": ["rice", "law"]}}, "required": ["topic"]},
)


@dataclass(frozen=True)
class Request:
    """`number` counts the requests from 1; `texts` are the rows' own."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def texts(self) -> list[str]:
        content = self.body["messages"][-1]["content"]
        return list(json.loads(content).values()) if content.startswith('{"1"') else [content]


@dataclass(frozen=True)
class Response:
    """`body` is sent as JSON unless it is bytes; a `length` other than the body's breaks off in the middle."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None


def completion(content: Any, finish: str = "stop", tokens: tuple[int, int] = (100, 10), **message: Any) -> Response:
    """A chat completion with this content, as JSON unless it is a text."""
    content = content if isinstance(content, str | None) else json.dumps(content, ensure_ascii=False)
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Response({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage})


def topics(request: Request) -> Response:
    """A good answer for each row."""
    values = [{"topic": "law" if "ច្បាប់" in text else "rice"} for text in request.texts]
    return completion(values[0] if len(values) == 1 else {str(n): v for n, v in enumerate(values, 1)})


@dataclass
class Host:
    """A running server: its address, and what it was asked, in order."""

    address: str
    seen: list[Request] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    def teacher(self, **settings: Any) -> Teacher:
        """A teacher behind it."""
        return Teacher(**{"name": "teacher", "address": self.address, "model": "sage", **settings})


@contextmanager
def host(answer: Callable[[Request], Response] = topics) -> Iterator[Host]:
    """A server that answers with `answer` while the context lasts."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                request = Request(len(running.seen) + 1, body, {k.lower(): v for k, v in self.headers.items()})
                running.seen.append(request)
                running.times.append(time.monotonic())
            response = answer(request)
            content = response.body if isinstance(response.body, bytes) else json.dumps(response.body).encode()
            length = len(content) if response.length is None else response.length
            try:
                self.send_response(response.status)
                for name, value in {"Content-Length": str(length), **response.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except ConnectionError:  # the client has heard enough
                self.close_connection = True
            if length != len(content):
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    running = Host(f"http://127.0.0.1:{server.server_address[1]}/v1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def smollm2(context: int = 1024) -> Iterator[Teacher]:
    """A real small teacher: SmolLM2-135M-Instruct behind this project's llama.cpp process, `context` tokens a slot.

    Its key is in the environment while the context lasts.
    """
    (port,) = free_ports(18_700, 1)
    settings = json.dumps({"force_pure_content_parser": False})
    command = [sys.executable, "-m", llama_cpp.__name__, str(gguf()), str(port), "smollm2", str(context), settings]
    env = {**os.environ, llama_cpp.KEY_VARIABLE: KEY, **PATIENT_THREADS}
    process = subprocess.Popen(command, env=env, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ["SMOLLM2_KEY"] = KEY
    try:
        address = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(httpx.HTTPError):
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            time.sleep(0.1)
        yield Teacher(name="smollm2", address=f"{address}/v1", model="smollm2", key_variable="SMOLLM2_KEY", at_a_time=8)
    finally:
        del os.environ["SMOLLM2_KEY"]
        process.kill()  # it may have been started in a process that ignores SIGTERM, and does so too then
        process.wait()


def rows(count: int) -> list[dict[str, str]]:
    """Short Khmer rows; every third is about law."""
    return [
        {"id": str(n), "text": f"ច្បាប់ស្ដីពីការងារ មាត្រា {n}" if n % 3 == 0 else f"កសិករច្រូតស្រូវនៅវាលទី {n}"}
        for n in range(count)
    ]


def asked(
    teachers: Teacher | list[Teacher],
    folder: Path,
    about: list[dict[str, str]],
    template: Template = TOPICS,
    budget: Budget | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> tuple[list[Answer], Asked]:
    """`ask` with its answers in `folder`."""
    return ask(teachers if isinstance(teachers, list) else [teachers], template, about, folder, budget or Budget(), log)
