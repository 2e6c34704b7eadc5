"""Brings the graph up to date: materializes, in the graph's order, what is missing or stale, and nothing else.

What counts as stale is told in `resources.staleness`.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import dagster as dg
import psutil
from dagster._core.errors import DagsterExecutionInterruptedError

from resources import blocking_checks
from resources.instance import ON_DEMAND
from resources.staleness import Artifact, causes, causes_since_snapshot, inputs_of, name_of, partitions_of

PROCESS_TAG = "khmer/process"

Say = Callable[[str], None]


@dataclass
class Summary:
    """What one call did: names of artifacts, with the partition in brackets."""

    materialized: list[str] = field(default_factory=list)
    fresh: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)


class MaterializationError(Exception):
    """An asset that was not materialized; the message is its own reason."""


def materialize(defs: dg.Definitions, instance: dg.DagsterInstance, name: str) -> None:
    """Materialize one asset in this process. Raises `MaterializationError` where that fails."""
    close_dead_runs(instance)
    result = _execute(defs, instance, dg.AssetKey(name), None)
    errors = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    if any(error and error.cls_name == DagsterExecutionInterruptedError.__name__ for error in errors):
        raise KeyboardInterrupt  # Dagster has made a failed step of it
    if not _was_materialized(result):
        raise MaterializationError(f"{name}: {_reason(result)}")


def materialize_stale(defs: dg.Definitions, instance: dg.DagsterInstance, say: Say = print) -> Summary:
    """Observe the sources, then materialize what is missing or stale and not `ON_DEMAND`.

    An artifact whose upstream failed, or has a failed blocking check, is held back; all others go on.
    """
    close_dead_runs(instance)
    graph = defs.resolve_asset_graph()
    summary = Summary()
    for key in graph.observable_asset_keys:
        _execute(defs, instance, key, None)
    keys = [key for key in graph.toposorted_asset_keys if graph.get(key).is_materializable]
    keys = [key for key in keys if not ON_DEMAND.items() <= graph.get(key).tags.items()]
    work = [(key, partition) for key in keys for partition in partitions_of(graph, key)]
    blocked: dict[Artifact, str] = {}
    for number, (key, partition) in enumerate(work, 1):
        name = name_of((key, partition))
        hindrances = [
            blocked[needed]
            for needed in inputs_of(graph, (key, partition))
            if needed in blocked and _cannot_do_without(graph, key, needed)
        ]
        if hindrances:
            summary.held_back[name] = blocked[key, partition] = hindrances[0]
            say(f"[{number:2}/{len(work)}] {name}: held back, because {hindrances[0]}")
            continue
        reasons = _unmet(instance, graph, key, partition)
        unjudged = any(
            reason.endswith(blocking_checks.NOT_RUN) for reason in reasons
        )  # killed between an asset and its checks
        if not causes(instance, graph, (key, partition)) and not unjudged:
            summary.fresh += 1
            if causes_since_snapshot(instance, graph, (key, partition)):
                for news in _evaluate_checks(defs, instance, graph, key):
                    say(f"        {name} is a snapshot, and {news}; `khmer snapshot` takes a new one")
        else:
            say(f"[{number:2}/{len(work)}] {name}")
            started = time.monotonic()
            result = _execute(defs, instance, key, partition)
            if result.success or _was_materialized(result):
                summary.materialized.append(name)
                say(f"        {time.monotonic() - started:.1f} s")
            else:
                summary.failed[name] = _reason(result)
                blocked[key, partition] = f"{name} failed"
                say(f"        failed: {summary.failed[name]}")
                continue
            reasons = _unmet(instance, graph, key, partition)
        for reason in reasons:
            blocked[key, partition] = f"the check of {name} {reason}"
            summary.failed.setdefault(name, f"the check {reason}")
            say(f"        the check {reason}")
    return summary


def _cannot_do_without(graph: Any, key: dg.AssetKey, needed: Artifact) -> bool:
    """Whether an asset cannot be made without one of its inputs: what takes all partitions goes on without one."""
    parent, partition = needed
    if partition is None or graph.get(key).partitions_def == graph.get(parent).partitions_def:
        return True
    return isinstance(graph.get(key).partition_mappings.get(parent), dg.SpecificPartitionsPartitionMapping)


def _unmet(instance: dg.DagsterInstance, graph: Any, key: dg.AssetKey, partition: str | None) -> list[str]:
    """Why blocking checks of the artifact do not hold for its newest version."""
    found = (blocking_checks.unmet(instance, check, partition) for check in blocking_checks.blocking_checks(graph, key))
    return [reason for reason in found if reason]


def _evaluate_checks(defs: dg.Definitions, instance: dg.DagsterInstance, graph: Any, key: dg.AssetKey) -> list[str]:
    """What the asset's checks say now that do not hold and block nothing."""
    checks = {check for check in graph.get_check_keys_for_assets({key}) if not graph.get(check).blocking}
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=set(), asset_check_selection=checks)
    result = job.execute_in_process(
        run_config={"loggers": {name: {} for name in job.loggers}}, instance=instance, raise_on_error=False
    )
    return [e.description for e in result.get_asset_check_evaluations() if not e.passed and e.description]


def close_dead_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs whose process was killed as failed, and give back the pool slots that they held."""
    unfinished = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    for run in instance.get_runs(unfinished):
        process = run.tags.get(PROCESS_TAG)
        if process is not None and process not in _living_processes():
            instance.report_run_failed(run, "the process of this run was ended")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _living_processes() -> set[str]:
    return {f"{p.info['pid']}-{p.info['create_time']:.0f}" for p in psutil.process_iter(["pid", "create_time"])}


def _this_process() -> str:
    return f"{os.getpid()}-{psutil.Process().create_time():.0f}"


def _execute(
    defs: dg.Definitions, instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None
) -> dg.ExecuteInProcessResult:
    job = defs.resolve_implicit_job_def_def_for_assets([key])
    assert job is not None, f"no job holds {key}"
    return job.execute_in_process(
        run_config={"loggers": {name: {} for name in job.loggers}},  # else Dagster prints every event of its own
        instance=instance,
        partition_key=partition,
        asset_selection=[key],
        raise_on_error=False,
        tags={PROCESS_TAG: _this_process()},
    )


def _was_materialized(result: dg.ExecuteInProcessResult) -> bool:
    return any(event.is_step_materialization for event in result.all_events)


def _reason(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return str(data.user_failure_data.description)
            error = data.error.cause if data.error and data.error.cause else data.error
            return error.message.strip() if error else "unknown"
    return "the run did not start"
