"""An answer comes whole, however the server frames it, or not at all."""

import asyncio
from collections.abc import Callable

import pytest

from khmer_assets.teachers import transport
from khmer_assets.teachers.transport import Answered, Direct

Write = Callable[[asyncio.StreamWriter, int], bool]


async def posted(answer: Callable[[int], bytes], times: int, closes: Callable[[int], bool] = lambda n: False):
    """What `times` requests one after the other get from a server that sends `answer(number)`, and its connections."""
    opened = served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened, served
        opened += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
            served += 1
            writer.write(answer(served))
            await writer.drain()
            if closes(served):
                writer.close()
                return

    def quietly(loop, context):
        """Connections that the client ends while the server reads."""

    asyncio.get_running_loop().set_exception_handler(quietly)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    way = Direct(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat", {"Authorization": "Bearer k"})
    found: list[Answered | Exception] = []
    for _ in range(times):
        try:
            found.append(await asyncio.wait_for(way.post(b"{}", {"X-Request-ID": "1"}), 5))
        except Exception as error:
            found.append(error)
        await asyncio.sleep(0.01)  # in which a server closes
    await way.close()
    server.close()
    return found, opened


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        (OK + b"Content-Length: 2\r\n\r\n{}", 1),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", 1),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\n{}", 1),
        (OK + b"Content-Length: 2\r\nConnection: close\r\n\r\n{}", 3),
    ],
    ids=["a length", "chunks", "hints before it", "closes"],
)
def test_an_answer_is_read_whole_and_the_connection_used_again_where_it_may_be(answer, connections):
    found, opened = asyncio.run(posted(lambda _: answer, 3))
    assert found == [Answered(200, None, b"{}")] * 3
    assert opened == connections


def test_an_answer_without_a_length_ends_with_its_connection():
    found, _ = asyncio.run(posted(lambda _: OK + b"\r\n{}", 2, closes=lambda _: True))
    assert found == [Answered(200, None, b"{}")] * 2


def test_a_kept_connection_that_the_server_has_closed_is_not_the_requests_fault():
    found, opened = asyncio.run(posted(lambda _: OK + b"Content-Length: 2\r\n\r\n{}", 4, closes=lambda _: True))
    assert found == [Answered(200, None, b"{}")] * 4
    assert opened == 4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (OK + b"Content-Length: 90\r\n\r\n{", "broke off"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", "broke off"),
        (b"", "broke off"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (OK + b"Content-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n", ""),
        (OK + b"X-Much: " + b"a" * 20_000, "over 10,000 bytes"),
        (OK + b"Content-Length: 20000\r\n\r\n" + b" " * 20_000, "over 10,000 bytes"),
    ],
)
def test_what_is_no_whole_answer_is_an_error(monkeypatch, answer, says):
    monkeypatch.setattr(transport, "MOST_BYTES", 10_000)
    found, _ = asyncio.run(posted(lambda _: answer, 1, closes=lambda _: True))
    assert isinstance(found[0], OSError | ValueError | Answered)
    assert says in str(found[0])
