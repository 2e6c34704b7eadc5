"""Which engine gets a request: the one with the least to do, of those that can be reached.

What belongs here: how much each engine has to do, and which are left alone for a moment. What does not: which engines
there are (`state.py`), and what happens when one fails (`answer.py`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from khmer_assets.foundation.settings import PositiveFloat, Settings
from khmer_assets.server.refusals import Refused

REST_SECONDS = 1.0  # before an engine that could not be reached is tried again
LOOK_SECONDS = 0.05


class Waiting(Settings):
    """`wait_seconds`: how long a request waits for an engine when none runs."""

    wait_seconds: PositiveFloat = 120


class Balance:
    """What the engines of the served release have to do. Engines are told apart by their ports."""

    def __init__(self) -> None:
        self.ports: tuple[int, ...] = ()
        self.running: Counter[int] = Counter()  # requests, also those that end on engines of a former release
        self.waiting = 0  # requests that have no engine
        self._resting: dict[int, float] = {}  # engines that could not be reached, and until when

    def follow(self, ports: tuple[int, ...]) -> None:
        """Give requests to these engines from now on."""
        self.ports = ports
        self._resting.clear()

    async def engine(self, tried: set[int], wait_seconds: float, refresh: Callable[[], None]) -> int:
        """The engine with the least to do, and none of `tried` while there are others; waits when none runs.

        `refresh` is called at each look: it may call `follow`. Raises `Refused` (503) when it has waited in vain.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            refresh()
            now = time.monotonic()
            ready = [port for port in self.ports if self._resting.get(port, 0) <= now]
            if fresh := [port for port in ready if port not in tried] or ready:
                return min(fresh, key=lambda port: self.running[port])
            if now > deadline:
                raise Refused(503, "no engine runs at the moment; try again later", retry_after=10)
            self.waiting += 1
            try:
                await asyncio.sleep(LOOK_SECONDS)
            finally:
                self.waiting -= 1

    @contextmanager
    def counted(self, port: int) -> Iterator[None]:
        """One more request that the engine has to do, until the end of the block."""
        self.running[port] += 1
        try:
            yield
        finally:
            self.running[port] -= 1

    def rest(self, port: int) -> None:
        """Leave an engine alone for a moment."""
        self._resting[port] = time.monotonic() + REST_SECONDS
