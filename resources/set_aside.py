"""The check that an asset's filter does not suddenly set aside more than it did: a source that broke, most often."""

from typing import Any

import dagster as dg

from resources.staleness import CODE_VERSION_TAG
from resources.storage import rows_told

LARGEST_JUMP = 0.2  # of the share of the rows


def set_aside_share_is_steady(asset: str, partitions: Any = None) -> dg.AssetChecksDefinition:
    """A blocking check of an asset that `frames` carries, with the column `rule`.

    The share of the rows set aside is compared with the materialization before, where that was made with the same
    settings. To accept a jump, materialize the asset once more.
    """

    @dg.asset_check(asset=asset, partitions_def=partitions, blocking=True, name="set_aside_share_is_steady")
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        """The share of the rows set aside has not grown by more than 0.2 since the last materialization."""
        partition = [context.partition_key] if partitions else None
        records = context.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=partition), limit=2
        ).records
        found = [record.asset_materialization for record in records if record.asset_materialization]
        same_settings = len({(made.tags or {}).get(CODE_VERSION_TAG) for made in found}) == 1
        shares = [_share(made) for made in found]
        if len(shares) < 2 or not same_settings:
            return dg.AssetCheckResult(passed=True, metadata={"share": shares[0] if shares else 0.0})
        now, before = shares
        told = f"{now:.0%} of the rows are set aside, the time before {before:.0%}; look at removed_by_rule"
        return dg.AssetCheckResult(
            passed=now - before <= LARGEST_JUMP,
            description=f"{told}, and materialize again if it is meant so",
            metadata={"share": now, "share_before": before},
        )

    return check


def _share(made: dg.AssetMaterialization) -> float:
    kept, removed = rows_told(made.metadata) or (0, 0)
    return removed / max(removed + kept, 1)
