"""Maps a function over many small things on all cores, in their order and with a bounded number in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
from typing import TypeVar

from resources.batches import cores

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 64  # things that travel together
CHUNK_SIZE = 4_000_000
INLINE_CHUNKS = 2  # fewer are done here, without the second that processes take to start
WAITING = 4  # chunks a core that are read ahead


def in_parallel(
    function: Callable[[list[T]], list[R]], things: Iterable[T], size: Callable[[T], int] = lambda thing: 1
) -> Iterator[R]:
    """What `function` makes of `things`, a chunk of them at a time. `function` and things can be pickled.

    `size` is a thing's, in bytes or characters: large things travel in smaller chunks.
    """
    waiting_chunks = chunks(things, CHUNK, size)
    first = list(islice(waiting_chunks, INLINE_CHUNKS + 1))
    if len(first) <= INLINE_CHUNKS:
        for chunk in first:
            yield from function(chunk)
        return
    pool = ProcessPoolExecutor(cores(), mp_context=get_context("spawn"))  # a fork would copy threads' locks
    waiting: deque[Future[list[R]]] = deque()
    try:
        for chunk in chain(first, waiting_chunks):
            waiting.append(pool.submit(function, chunk))
            if len(waiting) >= WAITING * cores():
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def chunks(things: Iterable[T], count: int, size: Callable[[T], int] = lambda thing: 1) -> Iterator[list[T]]:
    """Things in lists of `count`, or of fewer where their sizes reach `CHUNK_SIZE`."""
    chunk: list[T] = []
    total = 0
    for thing in things:
        chunk.append(thing)
        total += size(thing)
        if len(chunk) >= count or total >= CHUNK_SIZE:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
