"""A filter that suddenly sets aside much more than before is held up, until somebody says that it is meant so."""

import dagster as dg
import polars as pl

from resources.set_aside import set_aside_share_is_steady
from resources.storage import FramesIOManager


def test_a_jump_of_the_share_set_aside_fails_until_it_is_made_again(tmp_path):
    instance = dg.DagsterInstance.ephemeral()
    frames = FramesIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    partitions = dg.StaticPartitionsDefinition(["news", "tales"])

    def passes(source: str, removed: int, version: str = "1") -> bool:
        @dg.asset(io_manager_key="frames", partitions_def=partitions, code_version=version)
        def filtered() -> pl.LazyFrame:
            rules = ["short"] * removed + [None] * (10 - removed)
            return pl.LazyFrame({"rule": rules, "measure": 1.0, "reason": "it is short"})

        parts = [filtered, set_aside_share_is_steady("filtered", partitions)]
        made = dg.materialize(
            parts, instance=instance, partition_key=source, resources={"frames": frames}, raise_on_error=False
        )
        (evaluation,) = made.get_asset_check_evaluations()
        return evaluation.passed

    assert passes("news", 1)
    assert passes("tales", 9)  # another partition
    assert passes("news", 3)
    assert not passes("news", 6)
    assert passes("news", 6)
    assert passes("news", 9, version="2")  # other settings
    assert passes("news", 1, version="2")
