"""The command: so many kills, the table and the JSON line."""

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import polars as pl

import benchmarks.chaos
from benchmarks.chaos.hosts import object_store, site
from benchmarks.chaos.kills import Kill, new_folder
from benchmarks.chaos.serving import Serving
from benchmarks.chaos.steps import Refresh, Training, Upload
from khmer_assets.foundation.tables import markdown_table


def main() -> None:
    """Kill, print the table and the JSON line."""
    parser = argparse.ArgumentParser(
        description=benchmarks.chaos.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    kills: list[Kill] = []
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        held.enter_context(object_store(folder))
        serving = Serving(folder / "serving", chance)
        held.callback(serving.close)
        steps: list[Callable[[], Kill]] = [
            Training(folder / "training", chance).kill,
            Upload(new_folder(folder / "upload"), chance).kill,
            Refresh(folder / "refresh", chance, held.enter_context(site())).kill,
            partial(serving.kill, "deployment"),
            partial(serving.kill, "gateway"),
        ]
        for number in range(arguments.kills):
            kills.append(steps[number % len(steps)]())
            print(f"{number + 1:3}/{arguments.kills}  {kills[-1]}", flush=True)
    table = pl.DataFrame(kills)
    sums = pl.col("half_written", "lost_artifacts", "failed_requests").sum()
    p95 = pl.col("recovered").quantile(0.95, "higher").round(1)
    print(markdown_table(table.group_by("step").agg(pl.len(), sums, pl.col("lost_steps").max(), p95).sort("step")))
    row = table.select(sums, pl.col("lost_steps").max(), p95).row(0, named=True)
    result = {
        "kills": len(kills),
        "half_written": row["half_written"],
        "lost_artifacts": row["lost_artifacts"],
        "lost_training_steps_max": row["lost_steps"],
        "failed_requests_without_cause": row["failed_requests"],
        "recovered_seconds_p95": row["recovered"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
