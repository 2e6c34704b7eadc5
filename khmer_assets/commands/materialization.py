"""Brings the graph up to date: materializes, in the graph's order, what is missing or stale, and nothing else.

What counts as stale is told in `resources.staleness`. Steps that need nothing of each other run side by side.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.commands.steps import Load, Outcome, Steps, close_dead_runs
from resources import blocking_checks
from resources.instance import ON_DEMAND, ON_DEMAND_PARTITIONS, STEPS, open_instance
from resources.staleness import (
    Artifact,
    Cause,
    causes,
    causes_since_snapshot,
    inputs_of,
    is_snapshot,
    name_of,
    partitions_of,
)
from resources.storage import FoldersIOManager, FramesIOManager

MUCH_SET_ASIDE = 0.5  # of a source's rows, of which people are told
NAMES_SHOWN = 3  # of partitions that are stale for the same reason

Say = Callable[[str], None]


@dataclass
class Summary:
    """What one call did: names of artifacts, with the partition in brackets."""

    materialized: list[str] = field(default_factory=list)
    fresh: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)
    peak_megabytes: float = 0


class MaterializationError(Exception):
    """An asset that was not materialized; the message is its own reason."""


def materialize(load: Load, home: Path, name: str) -> None:
    """Materialize one asset. Raises `MaterializationError` where that fails."""
    instance = open_instance(home)
    close_dead_runs(instance, home)
    with Steps(load, home, instance) as steps:
        steps.start((dg.AssetKey(name), None))
        ((_, outcome),) = steps.wait()
    if not outcome.made:
        raise MaterializationError(f"{name}: {outcome.failure}")


def materialize_stale(load: Load, home: Path, say: Say = print, dry_run: bool = False) -> Summary:
    """Observe the sources, say what is missing or stale, and materialize it, except what is `ON_DEMAND`.

    An artifact whose upstream failed, or has a failed blocking check, is held back; all others go on. With `dry_run`
    nothing is made. A `KeyboardInterrupt` ends what is being made within seconds.
    """
    instance = open_instance(home)
    close_dead_runs(instance, home)
    with Steps(load, home, instance) as steps:
        defs = load()
        graph = defs.resolve_asset_graph()
        for key in graph.observable_asset_keys:
            steps.start((key, None))
        while steps.running:
            for artifact, outcome in steps.wait():
                if outcome.failure:
                    say(f"{name_of(artifact)} could not be looked at: {outcome.failure}")
        run = _Run(defs, graph, instance, steps, say)
        run.tell_plan()
        if not dry_run:
            run.to_the_end()
            run.tell_snapshots()
    return run.summary


class _Run:
    def __init__(self, defs: dg.Definitions, graph: Any, instance: dg.DagsterInstance, steps: Steps, say: Say):
        self.defs = defs
        self.graph = graph
        self.instance = instance
        self.steps = steps
        self.say = say
        self.summary = Summary()
        keys = [key for key in graph.toposorted_asset_keys if graph.get(key).is_materializable]
        keys = [key for key in keys if not ON_DEMAND.items() <= graph.get(key).tags.items()]
        self.trained = {key for key in keys if "mlflow" in defs.resolve_assets_def(key).required_resource_keys}
        work = [(key, one) for key in keys for one in partitions_of(graph, key) if one not in _on_demand(graph, key)]
        self.place = {artifact: number for number, artifact in enumerate(work, 1)}
        self.needs = {artifact: [i for i in inputs_of(graph, artifact) if i in self.place] for artifact in work}
        self.gone = self._without_files()
        self.blocked: dict[Artifact, str] = {}

    def _without_files(self) -> set[Artifact]:
        """The artifacts that the store does not have: it was moved or emptied, or they were never made."""
        gone: set[Artifact] = set()
        for name, manager in (self.defs.resources or {}).items():
            if isinstance(manager, FramesIOManager | FoldersIOManager):
                kept = {
                    (key.to_python_identifier(), partition): (key, partition)
                    for key, partition in self.place
                    if self.defs.resolve_assets_def(key).get_io_manager_key_for_asset_key(key) == name
                }
                try:
                    gone |= {kept[artifact] for artifact in manager.store.without_files(kept)}
                except Exception as error:  # whatever a store's library raises; the steps fail with the reason
                    self.say(f"the store {manager.root} could not be looked at: {error}")
        return gone

    def tell_plan(self) -> None:
        """Say what is missing or stale and why, and what may come to be so by that."""
        why = {artifact: found for artifact in self.place if (found := self._why(artifact))}
        following: dict[Artifact, None] = {}
        for artifact in self.place:
            new = any(cause.kind == "missing" for need in self.needs[artifact] for cause in why.get(need, []))
            if artifact in why or (is_snapshot(self.graph, artifact) and not new):
                continue
            if any(need in why or need in following for need in self.needs[artifact]):
                following[artifact] = None
        self.summary.fresh = len(self.place) - len(why) - len(following)
        if why:
            self.say(f"to make: {len(why)} of {len(self.place)}")
        grouped: dict[tuple[dg.AssetKey, str], list[Artifact]] = defaultdict(list)
        for artifact, found in why.items():
            kinds = {cause.kind for cause in found}
            grouped[artifact[0], "input" if kinds == {"input"} else found[0].text].append(artifact)
        for (key, reason), artifacts in grouped.items():
            if reason == "input":
                reason = _one_line([cause for artifact in artifacts for cause in why[artifact]])
            self.say(f"  {self._named(key, artifacts)}: {reason}{self._from_scratch(artifacts[0])}")
        if following:
            self.say("and what is made of them, where they come out different:")
        for key in dict.fromkeys(key for key, _ in following):
            artifacts = [artifact for artifact in following if artifact[0] == key]
            self.say(f"  {self._named(key, artifacts)}{self._from_scratch(artifacts[0])}")

    def _named(self, key: dg.AssetKey, artifacts: list[Artifact]) -> str:
        if artifacts[0][1] is None:
            return key.to_user_string()
        partitions = [str(partition) for _, partition in artifacts]
        shown = ", ".join(partitions) if len(partitions) <= NAMES_SHOWN else f"{len(partitions)} of them"
        return f"{key.to_user_string()} ({shown})"

    def _from_scratch(self, artifact: Artifact) -> str:
        """What people want to know before days of training begin anew."""
        missing = [cause.kind for cause in causes(self.instance, self.graph, artifact)] == ["missing"]
        return "; it is trained again from scratch" if artifact[0] in self.trained and not missing else ""

    def _why(self, artifact: Artifact) -> list[Cause]:
        """Why an artifact is to be made; also when it was lost, or its process was killed before its checks had run."""
        found = causes(self.instance, self.graph, artifact)
        if not found and artifact in self.gone:
            found = [Cause("gone", "its files are gone")]
        if not found and any(reason.endswith(blocking_checks.NOT_RUN) for reason in self._unmet(artifact)):
            found = [Cause("missing", "its checks have not run")]
        return found

    def to_the_end(self) -> None:
        """Make what is to be made, as many steps at a time as there are cores for."""
        self.summary.fresh = 0
        order = TopologicalSorter(self.needs)
        order.prepare()
        waiting: dict[Artifact, list[Cause]] = {}
        while order.is_active():
            for artifact in sorted(order.get_ready(), key=self.place.__getitem__):
                if cause := self._hindrance(artifact):
                    self.summary.held_back[name_of(artifact)] = self.blocked[artifact] = cause
                    order.done(artifact)
                elif found := self._why(artifact):
                    waiting[artifact] = found
                else:
                    self.summary.fresh += 1
                    self._note_checks(artifact)
                    order.done(artifact)
            for artifact in sorted(waiting, key=self.place.__getitem__):
                if self._has_room_for(artifact):
                    self._announce(artifact, waiting.pop(artifact))
                    self.steps.start(artifact)
            if self.steps.running:
                for artifact, outcome in self.steps.wait():
                    self._finish(artifact, outcome)
                    order.done(artifact)

    def tell_snapshots(self) -> None:
        """Say what the checks find of snapshots whose inputs have changed since."""
        for artifact in self.place:
            if artifact not in self.blocked and causes_since_snapshot(self.instance, self.graph, artifact):
                for news in self._evaluate_checks(artifact[0]):
                    self.say(f"{name_of(artifact)} is a snapshot, and {news}; `khmer snapshot` takes a new one")

    def _evaluate_checks(self, key: dg.AssetKey) -> list[str]:
        """What the asset's checks say now that do not hold and block nothing."""
        checks = {check for check in self.graph.get_check_keys_for_assets({key}) if not self.graph.get(check).blocking}
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(
            asset_selection=set(), asset_check_selection=checks
        )
        try:
            result = job.execute_in_process(
                run_config={"loggers": {name: {} for name in job.loggers}}, instance=self.instance
            )
        except dg.DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        return [e.description for e in result.get_asset_check_evaluations() if not e.passed and e.description]

    def _hindrance(self, artifact: Artifact) -> str | None:
        blocked = partial(_cannot_do_without, self.graph, artifact[0])
        return next((self.blocked[i] for i in self.needs[artifact] if i in self.blocked and blocked(i)), None)

    def _has_room_for(self, artifact: Artifact) -> bool:
        def pools(artifact: Artifact) -> set[str]:
            return self.graph.get(artifact[0]).pools or set()

        taken = {pool for running in self.steps.running for pool in pools(running)}
        return len(self.steps.running) < STEPS and not pools(artifact) & taken

    def _announce(self, artifact: Artifact, found: list[Cause]) -> None:
        reason = "" if found[0].kind == "missing" else f", because {_one_line(found)}{self._from_scratch(artifact)}"
        self.say(f"[{self.place[artifact]:2}/{len(self.place)}] {name_of(artifact)}{reason}")

    def _finish(self, artifact: Artifact, outcome: Outcome) -> None:
        name = name_of(artifact)
        self.summary.peak_megabytes = max(self.summary.peak_megabytes, outcome.peak_megabytes)
        if not outcome.made:
            self.summary.failed[name] = outcome.failure or "it was not made"
            self.blocked[artifact] = f"{name} failed"
            self.say(f"        {name} failed: {self.summary.failed[name]}")
            return
        self.summary.materialized.append(name)
        kept, removed = outcome.rows or (0, 0)
        rows = f", {kept:,} rows kept, {removed:,} set aside" if outcome.rows else ""
        self.say(f"        {name}: {outcome.seconds:.1f} s{rows}")
        if removed and removed > MUCH_SET_ASIDE * (kept + removed):
            amount = f"{100 * removed / (kept + removed):.0f} %" if kept else "all"
            self.say(f"        WARNING: {name} set {amount} of its rows aside; {outcome.path}/removed.parquet has why")
        elif outcome.rows == (0, 0) and any(need not in self.place for need in inputs_of(self.graph, artifact)):
            self.say(f"        WARNING: {name} has no rows")
        self._note_checks(artifact)

    def _note_checks(self, artifact: Artifact) -> None:
        for reason in self._unmet(artifact):
            name = name_of(artifact)
            self.blocked[artifact] = f"the check of {name} {reason}"
            self.summary.failed.setdefault(name, f"the check {reason}")
            self.say(f"        {name}: the check {reason}")

    def _unmet(self, artifact: Artifact) -> list[str]:
        """Why blocking checks of the artifact do not hold for its newest version."""
        key, partition = artifact
        checks = blocking_checks.blocking_checks(self.graph, key)
        return [reason for check in checks if (reason := blocking_checks.unmet(self.instance, check, partition))]


def _on_demand(graph: Any, key: dg.AssetKey) -> list[str]:
    """The partitions of an asset that are made when somebody asks for them."""
    return list(graph.get(key).metadata.get(ON_DEMAND_PARTITIONS, []))


def _one_line(found: list[Cause]) -> str:
    texts = list(dict.fromkeys(cause.text for cause in found))
    more = f" and {len(texts) - NAMES_SHOWN} more" if len(texts) > NAMES_SHOWN else ""
    return ", ".join(texts[:NAMES_SHOWN]) + more


def _cannot_do_without(graph: Any, key: dg.AssetKey, needed: Artifact) -> bool:
    """Whether an asset cannot be made without one of its inputs: what takes all partitions goes on without one."""
    parent, partition = needed
    if partition is None or graph.get(key).partitions_def == graph.get(parent).partitions_def:
        return True
    return isinstance(graph.get(key).partition_mappings.get(parent), dg.SpecificPartitionsPartitionMapping)
