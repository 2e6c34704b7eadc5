"""Towards users: who leaves in the middle of an answer has left, and that is nobody's failure."""

import asyncio
import json
import socket
import struct
import time

from tests.server.gateways import event, front

LEAVING = 60
BODY = json.dumps({"model": "khmer", "messages": [{"role": "user", "content": "រាប់"}], "stream": True}).encode()


def test_who_leaves_while_pieces_are_sent_has_cancelled(tmp_path, caplog):
    async def many_pieces(common, *_):
        for number in range(20_000):
            yield event({**common, "choices": [{"index": 0, "delta": {"content": str(number)}}]})
            await asyncio.sleep(0)

    with front(tmp_path) as gateway:
        gateway.engines[0].pieces = many_pieces
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\n"
        for number in range(LEAVING):
            with socket.create_connection(("127.0.0.1", gateway.port)) as user:
                user.sendall(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
                for _ in range(1 + number % 5):
                    assert user.recv(4096)
                user.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed at once
        for _ in range(600):
            if len(gateway.records()) == LEAVING:
                break
            time.sleep(0.05)
        assert [record["outcome"] for record in gateway.records()] == ["cancelled"] * LEAVING
    assert not [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
