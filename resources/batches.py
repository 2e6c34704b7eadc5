"""Runs a pure function over a table's rows in batches: on this machine's cores, or on a Ray cluster.

The rows are cut where their own content says so, and each batch's result is kept under a digest of what it was made
from. So a run that was killed goes on with the batches that are missing, and a table that grew is computed only where
it is new. The results are the same wherever the batches are computed.
"""

import fcntl
import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, Literal

import dagster as dg
import polars as pl
from pydantic import PrivateAttr

from khmer_assets.foundation.files import write_whole
from khmer_assets.foundation.workers import Pending, cores, in_order

LOCK = "lock"
RAY_VARIABLE = "KHMER_RAY_ADDRESS"

ROWS = 512  # of a batch, on average
MAX_ROWS = 4 * ROWS
ROWS_READ = 8 * ROWS  # at once, where they follow one another
# Starting the workers takes a second or two: so much text is done in that time without them.
INLINE_BATCHES = 3

BatchFunction = Callable[[pl.DataFrame], pl.DataFrame]
_kept: BatchFunction  # of a worker process
_Submit = Callable[[pl.DataFrame], Pending[bytes]]


class Batches(dg.ConfigurableResource):
    """`ray_address`: of a Ray cluster, as `ray.init` takes it; empty for this machine's cores."""

    home: str
    ray_address: str = ""
    _held: list[IO[str]] = PrivateAttr(default_factory=list)

    def map(
        self,
        name: str,
        version: str,
        function: BatchFunction,
        frame: pl.LazyFrame,
        workers: Literal["processes", "threads"] = "processes",
    ) -> pl.LazyFrame:
        """`function` of all rows of `frame`, in their order.

        `function` is pure, can be pickled, and maps any run of rows by itself. `name` is the artifact's, `version`
        changes when the function or its settings do. The frame has a column `content_hash` that stands for its
        column `text`. `workers`: threads for a function that releases the interpreter's lock, else processes.
        """
        place = Path(self.home) / "batches" / name
        place.mkdir(parents=True, exist_ok=True)
        cuts = _cut(frame, version)
        self._hold(place, {f"{key}.arrow" for key, _, _ in cuts})
        missing = {key: (start, rows) for key, start, rows in cuts if not (place / f"{key}.arrow").exists()}
        files, runs = [place / f"{key}.arrow" for key in missing], list(missing.values())
        with self._executor(workers, len(missing), function) as submit:
            results = in_order(submit, _read(frame, runs))
            for file, result in zip(files, results, strict=True):
                write_whole(file, result)
        return pl.scan_ipc([place / f"{key}.arrow" for key, _, _ in cuts])

    def _hold(self, place: Path, wanted: set[str]) -> None:
        """Keep the batches in `place` until the run ends. The unwanted are removed first, unless another run's."""
        lock = (place / LOCK).open("w")
        self._held.append(lock)  # its end is the lock's end
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for file in place.iterdir():
                if file.name not in {*wanted, LOCK}:
                    file.unlink()
        fcntl.flock(lock, fcntl.LOCK_SH)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """What the run has computed is read no more."""
        while self._held:
            self._held.pop().close()

    @contextmanager
    def _executor(self, workers: str, batches: int, function: BatchFunction) -> Iterator[_Submit]:
        if self.ray_address:
            with _ray(self.ray_address, function) as submit:
                yield submit
        elif workers == "processes" and batches > INLINE_BATCHES and cores() > 1:
            context = get_context("spawn")
            with ProcessPoolExecutor(cores(), context, initializer=_keep, initargs=(function,)) as processes:
                yield lambda rows: processes.submit(_apply_kept, rows)
        else:
            with ThreadPoolExecutor(cores()) if workers == "threads" else _Inline() as executor:
                yield lambda rows: executor.submit(_apply, function, rows)


class _Inline(Executor):
    """Computes at once, in this thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def _ray(address: str, function: BatchFunction) -> Iterator[_Submit]:
    import ray

    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)

    class Underway:
        def __init__(self, reference: Any):
            self._reference = reference

        def result(self) -> bytes:
            return bytes(ray.get(self._reference))

    try:
        apply, held = ray.remote(_apply), ray.put(function)  # which each node fetches once
        yield lambda rows: Underway(apply.remote(held, rows))
    finally:
        ray.shutdown()


def _cut(frame: pl.LazyFrame, version: str) -> list[tuple[str, int, int]]:
    """Where the batches begin and how many rows they have, each with a digest of its rows and the version.

    A batch ends behind a row whose content hash says so, hence rows that are added or removed move no other cut.
    """
    known = frame.drop("text").collect(engine="streaming")
    digests = known.hash_rows(seed=1)
    ends = known["content_hash"].str.slice(0, 8).str.to_integer(base=16, dtype=pl.Int64) % ROWS == 0
    bounds = sorted({0, *(ends.arg_true() + 1).to_list(), known.height})
    runs = [
        (first, min(MAX_ROWS, end - first)) for start, end in pairwise(bounds) for first in range(start, end, MAX_ROWS)
    ] or [(0, 0)]
    cuts = []
    for start, rows in runs:
        digest = hashlib.sha256(version.encode() + b"\0" + digests.slice(start, rows).to_numpy().tobytes())
        cuts.append((digest.hexdigest()[:32], start, rows))
    return cuts


def _read(frame: pl.LazyFrame, runs: list[tuple[int, int]]) -> Iterator[pl.DataFrame]:
    """The rows of each run (start, rows), in order. Runs that follow one another are read together."""
    place = 0
    while place < len(runs):
        first, last = runs[place][0], place
        while last + 1 < len(runs) and sum(runs[last]) == runs[last + 1][0] and sum(runs[last]) - first < ROWS_READ:
            last += 1
        read = frame.slice(first, sum(runs[last]) - first).collect()
        yield from (read.slice(start - first, rows) for start, rows in runs[place : last + 1])
        place = last + 1


def _apply(function: BatchFunction, rows: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    function(rows).write_ipc(buffer, compression="lz4")
    return buffer.getvalue()


def _keep(function: BatchFunction) -> None:
    """Begin a worker process: what the function holds, such as an index, is sent to it once."""
    global _kept
    _kept = function


def _apply_kept(rows: pl.DataFrame) -> bytes:
    return _apply(_kept, rows)
