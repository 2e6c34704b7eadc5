"""Which artifacts are missing or stale, and why: the judgment of Dagster's UI, read off the same events.

Each materialization tells in its tags with which code version it was made, and which were the newest events of its
inputs then. Dagster itself judges with classes that are private, and looks at no input with 100 partitions or more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import dagster as dg

from resources.instance import SNAPSHOT

# Dagster's tags of a materialization. The first two are of an observation too, the last has an input's name behind it.
DATA_VERSION_TAG = "dagster/data_version"
CODE_VERSION_TAG = "dagster/code_version"
INPUT_EVENT_TAG = "dagster/input_event_pointer/"

Artifact = tuple[dg.AssetKey, str | None]  # an asset, and the partition where it has some


@dataclass(frozen=True)
class Cause:
    """Why an artifact is not up to date: it was never made, its files are gone, its code or settings changed, or an
    input did.
    """

    kind: Literal["missing", "gone", "settings", "input"]
    text: str


@dataclass(frozen=True)
class _Version:
    event: int
    run: str
    data: str
    tags: Mapping[str, str]


def name_of(artifact: Artifact) -> str:
    """The asset's name, with the partition in brackets."""
    key, partition = artifact
    return f"{key.to_user_string()} ({partition})" if partition else key.to_user_string()


def partitions_of(graph: Any, asset: dg.AssetKey) -> list[str | None]:
    """The asset's partitions, or [None] when it has none."""
    definition = graph.get(asset).partitions_def
    return list(definition.get_partition_keys()) if definition else [None]


def inputs_of(graph: Any, artifact: Artifact) -> list[Artifact]:
    """The artifacts from which one is made: the same partition of what is partitioned alike, else all of them."""
    key, partition = artifact
    node = graph.get(key)
    found: list[Artifact] = []
    for parent in sorted(node.parent_keys):
        mapping = node.partition_mappings.get(parent)
        if isinstance(mapping, dg.SpecificPartitionsPartitionMapping):
            found += [(parent, upstream) for upstream in mapping.partition_keys]
        elif partition is not None and graph.get(parent).partitions_def == node.partitions_def:
            found.append((parent, partition))
        else:
            found += [(parent, upstream) for upstream in partitions_of(graph, parent)]
    return found


def causes(instance: dg.DagsterInstance, graph: Any, artifact: Artifact) -> list[Cause]:
    """Why the artifact's newest version is not what would be made now; empty when it is up to date.

    A `SNAPSHOT` is up to date while its settings are, and the artifacts that it was made from are still all there are.
    """
    found = _causes(instance, graph, artifact)
    return [cause for cause in found if cause.kind != "input" or not is_snapshot(graph, artifact)]


def causes_since_snapshot(instance: dg.DagsterInstance, graph: Any, artifact: Artifact) -> list[Cause]:
    """How the inputs of a `SNAPSHOT` have changed since it was taken; empty for other artifacts."""
    if not is_snapshot(graph, artifact):
        return []
    return [cause for cause in _causes(instance, graph, artifact) if cause.kind == "input"]


def runs_of_versions(instance: dg.DagsterInstance, graph: Any) -> set[str]:
    """The runs whose events tell what is stale: those that made the newest versions, and the inputs of these."""
    runs = set()
    for key in graph.get_all_asset_keys():
        for partition in partitions_of(graph, key):
            if made := _newest(instance, graph, (key, partition)):
                runs.add(made.run)
                for source in inputs_of(graph, (key, partition)):
                    event = made.tags.get(INPUT_EVENT_TAG + source[0].to_user_string(), "")
                    if event.isdigit() and (then := _newest(instance, graph, source, until=int(event))):
                        runs.add(then.run)
    return runs


def is_snapshot(graph: Any, artifact: Artifact) -> bool:
    """Whether the artifact stays as it is when its inputs change."""
    return SNAPSHOT.items() <= graph.get(artifact[0]).tags.items()


def _causes(instance: dg.DagsterInstance, graph: Any, artifact: Artifact) -> list[Cause]:
    made = _newest(instance, graph, artifact)
    if made is None:
        return [Cause("missing", "it was never made")]
    node = graph.get(artifact[0])
    found = []
    if node.code_version and made.tags.get(CODE_VERSION_TAG) != node.code_version:
        found.append(Cause("settings", "its settings or code changed"))
    then = {tag.removeprefix(INPUT_EVENT_TAG) for tag in made.tags if tag.startswith(INPUT_EVENT_TAG)}
    for gone in sorted(then - {parent.to_user_string() for parent in node.parent_keys}):
        found.append(Cause("settings", f"it is not made from {gone} any more"))
    for source in inputs_of(graph, artifact):
        event = made.tags.get(INPUT_EVENT_TAG + source[0].to_user_string())
        if event is None:
            found.append(Cause("settings", f"it is made from {name_of(source)} too now"))
        else:
            found += _change(instance, graph, source, int(event) if event.isdigit() else 0)
    return found


def _change(instance: dg.DagsterInstance, graph: Any, artifact: Artifact, since: int) -> list[Cause]:
    """How the artifact's content differs from what it was at the event `since`: in nothing, or in one way."""
    now = _newest(instance, graph, artifact)
    if now is None or now.event <= since:
        return []
    before = _newest(instance, graph, artifact, until=since)
    if before is None:
        return [Cause("settings", f"it is made from {name_of(artifact)} too now")]
    return [Cause("input", f"{name_of(artifact)} changed")] if before.data != now.data else []


def _newest(instance: dg.DagsterInstance, graph: Any, artifact: Artifact, until: int | None = None) -> _Version | None:
    key, partition = artifact
    wanted = dg.AssetRecordsFilter(
        key,
        asset_partitions=[partition] if partition else None,
        before_storage_id=None if until is None else until + 1,
    )
    fetch = instance.fetch_materializations if graph.get(key).is_materializable else instance.fetch_observations
    for record in fetch(wanted, limit=1).records:
        event = record.asset_event
        tags = (event.tags if event else None) or {}
        return _Version(record.storage_id, record.run_id, tags.get(DATA_VERSION_TAG, ""), tags)
    return None
