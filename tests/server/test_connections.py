"""Connections to engines survive what engines do to them: closing when used, small and huge pieces, slow readers."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from khmer_assets.server.state import ServerState
from tests.server.gateways import RELEASE, USAGE, event, front

WHOLE = json.dumps({"choices": [{"message": {"content": "ភ្នំពេញ"}, "finish_reason": "stop"}], "usage": USAGE}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def gateway(tmp_path):
    with front(tmp_path, engines=0) as started:
        yield started


@contextmanager
def engine(gateway, answer: Callable[[socket.socket, int], None]) -> Iterator[None]:
    """A server for the gateway, which is well; `answer` gets each request's connection and its number on that."""

    def serve(connection: socket.socket) -> None:
        with connection:
            number, request = 0, b""
            while data := connection.recv(65_536):
                request += data
                head, _, body = request.partition(b"\r\n\r\n")
                if len(body) < int(head.lower().partition(b"content-length: ")[2].split()[0]):
                    continue
                request = b""
                if head.startswith(b"GET /health "):
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                number += 1
                try:
                    answer(connection, number)
                except OSError:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        ServerState(release=RELEASE, ports=(listener.getsockname()[1],)).write(gateway.folder)
        yield
        listener.shutdown(socket.SHUT_RDWR)


def request(gateway, **fields) -> dict:
    body = {"model": "khmer", "messages": [{"role": "user", "content": "សួស្តី"}], **fields}
    headers = {"Authorization": f"Bearer {gateway.key}"}
    return {"url": f"{gateway.address}/v1/chat/completions", "json": body, "headers": headers, "timeout": 20}


def test_an_engine_that_closes_a_kept_connection_when_it_is_used_loses_no_request(gateway, caplog):
    def answer(connection, number):
        if number > 1:
            raise ConnectionError("closed, as when an idle time ends")
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(WHOLE) + WHOLE)

    with engine(gateway, answer), httpx.Client(trust_env=False) as users:
        assert [users.post(**request(gateway)).status_code for _ in range(20)] == [200] * 20
    assert "failure" not in caplog.text  # nor has the engine been left alone for it


def test_an_engine_that_always_breaks_off_is_given_up(gateway):
    asked = []

    def answer(connection, number):
        asked.append(number)
        raise ConnectionError("died")

    with engine(gateway, answer):
        assert httpx.post(**request(gateway), trust_env=False).status_code == 502
    assert asked == [1, 1, 1]  # the second time on a kept connection, which may end at any time and is no attempt


def test_events_arrive_whole_however_they_are_cut(gateway):
    events = [event({"choices": [{"index": 0, "delta": {"content": text}}]}) for text in ("ភ្នំ", "ពេញ", "។")]
    stream = b"".join(events) + b"data: [DONE]\n\n"

    def answer(connection, number):
        connection.sendall(HEAD)
        for start in range(0, len(stream), 25):
            piece = stream[start : start + 25]
            chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
            connection.sendall(chunk[:9])
            time.sleep(0.002)
            connection.sendall(chunk[9:])
        connection.sendall(b"0\r\n\r\n")

    with engine(gateway, answer), httpx.stream("POST", **request(gateway, stream=True), trust_env=False) as got:
        pieces = list(got.iter_raw())
    assert b"".join(pieces) == stream
    assert all(piece.endswith(b"\n\n") for piece in pieces)
    assert gateway.record("completed")["output"] == "ភ្នំពេញ។"


def test_a_slow_reader_stops_the_engine_and_gets_everything(gateway):
    big = event({"choices": [{"index": 0, "delta": {"content": "ក" * 20_000}}]})
    count, sent = 800, []

    def answer(connection, number):
        connection.sendall(HEAD)
        for _ in range(count):
            connection.sendall(b"%x\r\n%b\r\n" % (len(big), big))
            sent.append(1)
        connection.sendall(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    with engine(gateway, answer), httpx.stream("POST", **request(gateway, stream=True), trust_env=False) as got:
        before = -1
        while len(sent) > before:  # until nothing moves any more
            before = len(sent)
            time.sleep(0.5)
        assert 0 < len(sent) < count
        whole = b"".join(got.iter_raw())
    assert whole == big * count + b"data: [DONE]\n\n"
