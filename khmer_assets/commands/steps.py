"""Artifacts that are made side by side, each in a process of its own that knows the graph from the start.

A process a step: what ends one, also the system when memory runs out, ends neither the run nor the steps beside it,
and one that is told to stop takes everything along that it started.
"""

import importlib
import multiprocessing
import os
import resource
import signal
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

import dagster as dg

from khmer_assets.foundation.launcher import identity_of
from khmer_assets.foundation.processes import how_it_ended
from resources import tracking
from resources.instance import open_instance, show_in_timeline
from resources.staleness import Artifact, name_of
from resources.storage import rows_told

PROCESS_TAG = "khmer/process"
GRAPH = "khmer_assets.definitions"
PRELOADED = "khmer_assets.commands.preload"  # once, by the process of which all steps are forks
STOPPING = (signal.SIGINT, signal.SIGTERM)  # a terminal or a service manager may send them to the whole group
STOP_SECONDS = 2.5  # until what was told to stop is killed

Load = Callable[[], dg.Definitions]


def current() -> dg.Definitions:
    """The graph of the current recipe."""
    defs: dg.Definitions = importlib.import_module(GRAPH).defs
    return defs


@dataclass
class Outcome:
    """What became of a step: whether its artifact was made, why not, and figures for people.

    `rows` are those kept and those set aside, `path` is where the artifact lies.
    """

    made: bool = False
    failure: str | None = None
    rows: tuple[int, int] | None = None
    path: str | None = None
    peak_megabytes: float = 0
    seconds: float = 0


@dataclass
class _Step:
    process: BaseProcess
    connection: Connection
    run_id: str
    started: float = field(default_factory=time.monotonic)


class Steps:
    """The steps that are running. `load` gives the definitions; it is called in each step's process.

    Leaving the context ends those that still run, as canceled.
    """

    def __init__(self, load: Load, home: Path, instance: dg.DagsterInstance):
        self._load = load
        self._home = home
        self._instance = instance
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOADED])
        resource_tracker.ensure_running()  # the forkserver would start it, and that unblocks the signals
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until it has a group of its own
        forkserver.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        self._running: dict[Artifact, _Step] = {}

    @property
    def running(self) -> list[Artifact]:
        """The artifacts that are being made."""
        return list(self._running)

    def start(self, artifact: Artifact) -> None:
        """Begin to make, or to observe, an artifact."""
        ours, theirs = self._context.Pipe(duplex=False)
        run_id = str(uuid.uuid4())
        process = self._context.Process(
            target=_work, args=(self._load, self._home, artifact, run_id, theirs), name=name_of(artifact)
        )
        self._running[artifact] = _Step(process, ours, run_id)
        process.start()
        theirs.close()

    def wait(self) -> list[tuple[Artifact, Outcome]]:
        """Those that have ended since; waits until one has."""
        ended = wait([step.connection for step in self._running.values()])
        found = []
        for artifact, step in list(self._running.items()):
            if step.connection in ended:
                found.append((artifact, self._outcome(step)))
                del self._running[artifact]
        return found

    def _outcome(self, step: _Step) -> Outcome:
        try:
            outcome = step.connection.recv()
            step.process.join()
        except EOFError:
            step.process.join()
            outcome = Outcome(failure=f"its process {how_it_ended(step.process.exitcode or 0)}")
            _close(self._instance, step.run_id, self._instance.report_run_failed, str(outcome.failure))
        step.connection.close()
        _end_group(step.process)
        outcome.seconds = time.monotonic() - step.started
        return outcome

    def __enter__(self) -> "Steps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all steps within seconds; Dagster shows their runs as canceled."""
        if not self._running:
            return
        former = [signal.signal(number, signal.SIG_IGN) for number in STOPPING]
        steps = [step for step in self._running.values() if step.process.pid]  # the last may not have begun
        for step in steps:
            run = self._instance.get_run_by_id(step.run_id)
            if run is not None and not run.is_finished:
                self._instance.report_run_canceling(run, "the run was stopped")  # else Dagster calls it a failure
            assert step.process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(step.process.pid, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        for step in steps:
            step.process.join(max(0.0, deadline - time.monotonic()))
            _end_group(step.process)
            step.process.join()
            _close(self._instance, step.run_id, self._instance.report_run_canceled, "the run was stopped")
        self._running.clear()
        for number, handler in zip(STOPPING, former, strict=True):
            signal.signal(number, handler)


def close_dead_runs(instance: dg.DagsterInstance, home: Path) -> None:
    """Mark runs whose process was killed as canceled, also in MLflow, and give back the pool slots that they held."""
    unfinished = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
    for run in instance.get_runs(dg.RunsFilter(statuses=unfinished)):
        process = run.tags.get(PROCESS_TAG)
        if process is not None and process != _identity(int(process.partition("-")[0])):
            _close(instance, run.run_id, instance.report_run_canceled, "the process of this run was ended")
    tracking.close_dead_runs(instance, home)


def _close(instance: dg.DagsterInstance, run_id: str, report: Callable[..., Any], message: str) -> None:
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        report(run, message)
    show_in_timeline(instance, run_id, GRAPH)  # also a run that its own process had closed by now
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def _identity(pid: int) -> str | None:
    """What tells a process from all others, also from a later one of the same number; None when it is gone."""
    try:
        return "-".join(str(part) for part in identity_of(pid).values())
    except FileNotFoundError:
        return None


def _end_group(process: BaseProcess) -> None:
    """Kill what is left of a step: the process, if it is still there, and what it started."""
    if process.pid is None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        if process.is_alive():  # not yet the leader of its group
            process.kill()


def _work(load: Load, home: Path, artifact: Artifact, run_id: str, connection: Connection) -> None:
    """The life of a step's process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setpgid(0, 0)  # out of reach of the terminal's Ctrl-C
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()

    instance = open_instance(home)
    key, partition = artifact
    job = load().resolve_implicit_job_def_def_for_assets([key])
    assert job is not None, f"no job holds {key}"
    with suppress(KeyboardInterrupt, dg.DagsterExecutionInterruptedError):  # Dagster has written it down
        result = job.execute_in_process(
            run_config={"loggers": {name: {"config": {"name": name_of(artifact)}} for name in job.loggers}},
            instance=instance,
            run_id=run_id,
            partition_key=partition,
            asset_selection=[key],
            raise_on_error=False,
            tags={PROCESS_TAG: str(_identity(os.getpid()))},
        )
        show_in_timeline(instance, run_id, GRAPH)
        connection.send(_told(result))


def _end_with_parent(parent: int) -> None:
    """A step whose run was killed must not go on, for the next run makes the same artifact."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


def _told(result: dg.ExecuteInProcessResult) -> Outcome:
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    outcome = Outcome(peak_megabytes=usage / 1024)
    for event in result.all_events:
        if event.is_step_materialization:
            metadata = event.step_materialization_data.materialization.metadata
            outcome.made = True
            outcome.path = str(metadata["path"].value) if "path" in metadata else None
            outcome.rows = rows_told(metadata)
    if not result.success and not outcome.made:
        outcome.failure = reason(result)
    return outcome


def reason(result: dg.ExecuteInProcessResult) -> str:
    """Why a run has failed, in the words of what failed."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return str(data.user_failure_data.description)
            error = data.error.cause if data.error and data.error.cause else data.error
            return error.message.strip() if error else "unknown"
    return "the run did not start"
