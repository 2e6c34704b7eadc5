"""A small graph in the shape of the real one: files, a table a source, a table of all, and a last step.

Each step runs in a process of its own, so what it obeys and what it did are files of the factory's folder.
"""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from resources.console_logger import terminal_logger
from resources.instance import ON_DEMAND, ON_DEMAND_PARTITIONS, SNAPSHOT
from resources.storage import FramesIOManager

SOURCES = dg.StaticPartitionsDefinition(["news", "poems"])


@dataclass
class Factory:
    """What the graph's steps do; kept in the folder."""

    folder: Path
    setting: str = "1"
    check_passes: bool = True
    anthology: bool = False
    chapters: bool = False  # whether there is an asset of which one partition is made on demand
    snapshot: bool = False  # whether `mixed` is one
    killed: str = ""  # the step that is killed by the system
    together: bool = False  # whether `raw` waits until it was begun for all sources
    pool: str | None = None  # that of `raw`, of which one step may run at a time
    slow: str = ""  # steps whose name begins like this last for ever
    said: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def write(self) -> None:
        (self.folder / "factory.json").write_text(json.dumps({**asdict(self), "folder": str(self.folder)}))

    def executed(self) -> list[str]:
        """What was begun since the last call, in order of names."""
        begun = self.folder / "executed"
        names = begun.read_text().splitlines() if begun.exists() else []
        begun.unlink(missing_ok=True)
        return sorted(names)

    def begin(self, name: str) -> None:
        with (self.folder / "executed").open("a") as file:
            file.write(f"{name}\n")
        if name == self.killed:
            os.kill(os.getpid(), 9)
        if self.slow and name.startswith(self.slow):
            time.sleep(600)

    def meet_the_others(self) -> None:
        """Wait until `raw` has begun for all sources."""
        deadline = time.monotonic() + 60
        while (self.folder / "executed").read_text().count("raw ") < len(SOURCES.get_partition_keys()):
            if time.monotonic() > deadline:
                raise dg.Failure("the other sources wait until this one is made")
            time.sleep(0.05)

    def be_alone(self) -> None:
        """Fail if another step is here."""
        (self.folder / "busy").touch(exist_ok=False)
        time.sleep(1)
        (self.folder / "busy").unlink()

    @property
    def load(self) -> Any:
        self.write()
        return partial(load, self.folder)


def load(folder: Path) -> dg.Definitions:
    """The graph of the factory in `folder`."""
    settings = json.loads((folder / "factory.json").read_text())
    factory = Factory(**{**settings, "folder": folder})

    @dg.observable_source_asset(partitions_def=SOURCES)
    def source_files():
        texts = {source: folder / source for source in SOURCES.get_partition_keys()}
        return dg.DataVersionsByPartition({s: f.read_text() if f.exists() else "none" for s, f in texts.items()})

    @dg.asset(partitions_def=SOURCES, deps=[source_files], io_manager_key="frames", code_version="1", pool=factory.pool)
    def raw(context: dg.AssetExecutionContext) -> pl.LazyFrame:
        factory.begin(f"raw {context.partition_key}")
        if factory.together:
            factory.meet_the_others()
        if factory.pool:
            factory.be_alone()
        file = folder / context.partition_key
        if not file.exists():
            raise dg.Failure(f"{file.name} is missing; put it back")
        rules = pl.when(pl.col("text").str.contains("អាក្រក់")).then(pl.lit("bad")).alias("rule")
        lines = pl.LazyFrame({"text": file.read_text().splitlines()}).with_columns(rules)
        return lines.with_columns(measure=pl.lit(1.0), reason=pl.lit("a bad line"))

    @dg.asset(partitions_def=SOURCES, io_manager_key="frames", code_version=factory.setting)
    def clean(context: dg.AssetExecutionContext, raw: pl.LazyFrame) -> pl.LazyFrame:
        factory.begin(f"clean {context.partition_key}")
        return raw.with_columns(pl.col("text").str.strip_chars())

    @dg.asset(io_manager_key="frames", code_version="1", tags=SNAPSHOT if factory.snapshot else {})
    def mixed(clean: dict[str, pl.LazyFrame]) -> pl.LazyFrame:
        factory.begin("mixed")
        return pl.concat(clean.values())

    @dg.asset_check(asset=mixed, blocking=True)
    def enough_text(mixed: pl.LazyFrame) -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=factory.check_passes)

    @dg.asset_check(asset=mixed, additional_ins={"now": dg.AssetIn("clean")})
    def is_recent(mixed: pl.LazyFrame, now: dict[str, pl.LazyFrame]) -> dg.AssetCheckResult:
        new = len(set(pl.concat(now.values()).collect()["text"]) - set(mixed.collect()["text"]))
        return dg.AssetCheckResult(passed=not new, description=f"{new} are new")

    @dg.asset(io_manager_key="frames", code_version="1")
    def model(mixed: pl.LazyFrame) -> pl.LazyFrame:
        factory.begin("model")
        return mixed.head(1)

    @dg.asset(io_manager_key="frames", code_version="1", tags=ON_DEMAND)
    def speed(model: pl.LazyFrame) -> pl.LazyFrame:
        factory.begin("speed")
        return model

    only_poems = dg.AssetIn(partition_mapping=dg.SpecificPartitionsPartitionMapping(["poems"]))

    @dg.asset(io_manager_key="frames", code_version="1", ins={"clean": only_poems})
    def anthology(clean: dict[str, pl.LazyFrame]) -> pl.LazyFrame:
        factory.begin("anthology")
        return clean["poems"]

    later = dg.StaticPartitionsDefinition(["now", "later"])

    @dg.asset(
        partitions_def=later,
        io_manager_key="frames",
        code_version="1",
        metadata={ON_DEMAND_PARTITIONS: ["later"]},
    )
    def chapter(context: dg.AssetExecutionContext, model: pl.LazyFrame) -> pl.LazyFrame:
        factory.begin(f"chapter {context.partition_key}")
        return model

    storage = FramesIOManager(root=str(folder / "store"), cache=str(folder / "cache"))
    assets: list[Any] = [source_files, raw, clean, mixed, model, speed, *([anthology] if factory.anthology else [])]
    assets += [chapter] if factory.chapters else []
    return dg.Definitions(
        assets=assets,
        asset_checks=[enough_text, is_recent],
        resources={"frames": storage},
        loggers={"console": terminal_logger},
    )
