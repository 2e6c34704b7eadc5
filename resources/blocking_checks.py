"""What Dagster's blocking checks say of the newest version of an asset, whichever run evaluated them."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.storage.asset_check_execution_record import (
    COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES,
    AssetCheckExecutionRecord,
)

from resources.staleness import partitions_of

NOT_RUN = "has not run on its newest version"
EVALUATIONS_READ = 100  # the newest of one partition; an older one counts as none, which is the safe side


def blocking_checks(graph: Any, asset: dg.AssetKey) -> list[dg.AssetCheckKey]:
    """The asset's checks that must hold before anything is made of it."""
    return sorted(key for key in graph.get_check_keys_for_assets({asset}) if graph.get(key).blocking)


def unmet(instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str | None) -> str | None:
    """Why a check does not hold for the newest materialization, or None when it does.

    A partition that was never materialized is no hindrance: what is made of all partitions goes on without it. The
    check of a partitioned asset has the same partitions.
    """
    newest = instance.fetch_materializations(
        dg.AssetRecordsFilter(check.asset_key, asset_partitions=[partition] if partition else None), limit=1
    ).records
    if not newest:
        return None if partition else f"{check.name!r} {NOT_RUN}"
    for evaluation in _evaluations(instance, check, partition):
        target = evaluation.target_materialization_data
        if target and target.storage_id == newest[0].storage_id:
            if evaluation.passed or evaluation.severity != dg.AssetCheckSeverity.ERROR:
                return None
            reason = f": {evaluation.description}" if evaluation.description else ""
            return f"{check.name!r} failed{reason}"
    return f"{check.name!r} {NOT_RUN}"


def _evaluations(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str | None
) -> Iterator[dg.AssetCheckEvaluation]:
    for record in _records(instance, check, partition, EVALUATIONS_READ):
        if evaluation := record.evaluation:
            yield evaluation


def _records(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str | None, limit: int
) -> Sequence[AssetCheckExecutionRecord]:
    return instance.event_log_storage.get_asset_check_execution_history(
        check,
        limit=limit,
        status=COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES,
        partition_filter=PartitionKeyFilter(key=partition),
    )


def runs_of_evaluations(instance: dg.DagsterInstance, graph: Any) -> set[str]:
    """The runs that evaluated each check last, in each partition."""
    return {
        record.run_id
        for check in graph.asset_check_keys
        for partition in partitions_of(graph, check.asset_key)
        for record in _records(instance, check, partition, 1)
    }


def require_checks(context: dg.AssetExecutionContext, unused: Collection[dg.AssetKey] = ()) -> None:
    """Raise `dg.Failure` while a blocking check upstream is not met. What is not in the artifact, though the graph says
    that it may be, is `unused`: it is not asked, nor what only it is made of."""
    graph = context.job_def.asset_layer.asset_graph.source_asset_graph  # whole, though the job may be a part of it
    partition = context.partition_key if context.has_partition_key else None
    if unmet := unmet_checks(context.instance, graph, context.asset_key, partition, unused):
        raise dg.Failure(
            "no release, for these blocking checks are not met:\n"
            + "\n".join(f"- {line}" for line in unmet)
            + "\nmaterialize those assets together with their checks, and then the release",
            allow_retries=False,
        )


def unmet_checks(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    asset: dg.AssetKey,
    partition: str | None = None,
    unused: Collection[dg.AssetKey] = (),
) -> list[str]:
    """Why `asset` may not be made yet: a line a blocking check upstream that fails or has not judged the newest.

    A check of an asset with the same partitions must hold for `partition`, one of an asset with others for every
    partition that has been materialized.
    """
    own = graph.get(asset).partitions_def
    lines = []
    for upstream in sorted(_upstream(graph, asset, unused)):
        name = upstream.to_user_string()
        alike = own is not None and graph.get(upstream).partitions_def == own
        for check in blocking_checks(graph, upstream):
            for judged in [partition] if alike else partitions_of(graph, upstream):
                if reason := unmet(instance, check, judged):
                    lines.append(f"{name} ({judged}): {reason}" if judged else f"{name}: {reason}")
    return lines


def _upstream(graph: AssetGraph, asset: dg.AssetKey, unused: Collection[dg.AssetKey]) -> set[dg.AssetKey]:
    found: set[dg.AssetKey] = set()
    waiting = [asset]
    while waiting:
        parents = graph.get(waiting.pop()).parent_keys - found - set(unused)
        found |= parents
        waiting += parents
    return found
