"""Work on all cores, in order and with a bounded number of things in memory."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from multiprocessing import get_context
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

WAITING = 4  # things a core that are underway or wait for their turn, which bounds the memory
CHUNK = 64  # things that travel together
CHUNK_SIZE = 4_000_000
INLINE_CHUNKS = 2  # fewer are done here, without the second that processes take to start


class Pending(Protocol[R_co]):
    """A result that is still being computed."""

    def result(self) -> R_co:
        """It, as soon as it is there."""


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(submit: Callable[[T], Pending[R]], things: Iterable[T]) -> Iterator[R]:
    """The results of `things`, in their order; `submit` begins to compute one. No more are read ahead than `WAITING`
    a core."""
    underway: deque[Pending[R]] = deque()
    for thing in things:
        underway.append(submit(thing))
        if len(underway) >= WAITING * cores():
            yield underway.popleft().result()
    while underway:
        yield underway.popleft().result()


def in_parallel(
    function: Callable[[list[T]], list[R]], things: Iterable[T], size: Callable[[T], int] = lambda thing: 1
) -> Iterator[R]:
    """What `function` makes of many small `things`, a chunk of them at a time. `function` and things can be pickled.

    `size` is a thing's, in bytes or characters: large things travel in smaller chunks.
    """
    waiting = chunks(things, CHUNK, size)
    first = list(islice(waiting, INLINE_CHUNKS + 1))
    if len(first) <= INLINE_CHUNKS:
        for chunk in first:
            yield from function(chunk)
        return
    pool = ProcessPoolExecutor(cores(), mp_context=get_context("spawn"))  # a fork would copy threads' locks
    try:
        for results in in_order(lambda chunk: pool.submit(function, chunk), chain(first, waiting)):
            yield from results
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
