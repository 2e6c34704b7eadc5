"""Which engine gets a request: the one with the least to do, of those that can be reached.

What belongs here: how much each engine has to do, which are left alone until they are well again, and the requests that
wait for one. What does not: which engines there are (`state.py`), whether one is well (`front_door.py`), and what
happens when one fails (`answer.py`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from khmer_assets.foundation.settings import PositiveFloat, Settings
from khmer_assets.server.refusals import Refused

REST_SECONDS = 1.0  # before an engine that could not be reached is looked at again


class Waiting(Settings):
    """`wait_seconds`: how long a request may take to find an engine, all its attempts together."""

    wait_seconds: PositiveFloat = 120


class Balance:
    """What the engines of the served release have to do. Engines are told apart by their ports."""

    def __init__(self) -> None:
        self.ports: tuple[int, ...] = ()
        self.running: Counter[int] = Counter()  # requests, also those that end on engines of a former release
        self.waiting = 0  # requests that have no engine
        self._resting: dict[int, float] = {}  # engines that could not be reached, and until when they are left alone
        self._ready = asyncio.Event()  # set while there is an engine that does not rest

    def follow(self, ports: tuple[int, ...]) -> None:
        """Give requests to these engines from now on."""
        self.ports = ports
        self._resting.clear()
        self._note()

    async def engine(self, tried: set[int], deadline: float) -> int:
        """The engine with the least to do, and none of `tried` while there are others; waits while there is none.

        Raises `Refused` (503) when there is none at the `deadline`, a time of `time.monotonic()`.
        """
        while not (ready := [port for port in self.ports if port not in self._resting]):
            self.waiting += 1
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._ready.wait()
            except TimeoutError:
                raise Refused(503, "no engine runs at the moment; try again later", retry_after=10) from None
            finally:
                self.waiting -= 1
        return min([port for port in ready if port not in tried] or ready, key=lambda port: self.running[port])

    @contextmanager
    def counted(self, port: int) -> Iterator[None]:
        """One more request that the engine has to do, until the end of the block."""
        self.running[port] += 1
        try:
            yield
        finally:
            self.running[port] -= 1

    def rest(self, port: int) -> bool:
        """Leave an engine alone until `wake`; whether this is news."""
        news = port in self.ports and port not in self._resting
        self._resting[port] = time.monotonic() + REST_SECONDS
        self._note()
        return news

    def rested(self) -> list[int]:
        """Engines that have been left alone for a moment: who is well again may be given requests."""
        return [port for port, until in self._resting.items() if until <= time.monotonic()]

    def wake(self, port: int) -> None:
        """Give an engine requests again."""
        self._resting.pop(port, None)
        self._note()

    def _note(self) -> None:
        if self._resting.keys() >= set(self.ports):
            self._ready.clear()
        else:
            self._ready.set()
