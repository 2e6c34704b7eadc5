"""The steps of the graph that are killed: a training, an upload to the object store, a refresh of a source."""

import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import psutil

from benchmarks.chaos.hosts import STORE
from benchmarks.chaos.kills import GIVEN_UP_AFTER, PROCESSES, PROGRESS, Kill, new_folder, small_recipe
from benchmarks.gateway import SAMPLE_TEXTS, random_model
from khmer_assets.pretraining import packing
from resources.compute import Compute
from resources.payload import PayloadRun
from resources.storage import FoldersIOManager, MissingArtifact, Store

UPLOADED_FILES, BYTES_A_FILE = 24, 300_000


class Step:
    """A step of the graph in a process of its own, and what it leaves in the store."""

    name: str
    artifact: tuple[str, str | None]

    def __init__(self, folder: Path, chance: random.Random):
        self.folder = folder
        self.chance = chance
        self.number = 0  # of the version that is being made
        self.committed: str | None = None
        first = Kill(self.name, "nobody")
        self.seconds = self.run_again(first)  # without a kill
        self.check(first)
        if first.lost_artifacts or first.half_written:
            raise RuntimeError(f"{self.name} fails without any kill")

    def start(self) -> Any:
        """Start the step in a process of its own."""
        process = PROCESSES.Process(target=self.function(), args=self.arguments())
        process.start()
        return process

    def function(self) -> Callable[..., None]:
        """What runs in the process."""
        raise NotImplementedError

    def arguments(self) -> tuple[Any, ...]:
        """What it is called with."""
        raise NotImplementedError

    def finished(self) -> None:
        """A run has come to its end: what it told of itself is not of the next one."""

    def run_again(self, found: Kill) -> float:
        """Run the step to its end; the seconds that it took."""
        started = time.monotonic()
        process = self.start()
        process.join(GIVEN_UP_AFTER)
        if process.exitcode != 0:
            print(f"{self.name} ended with status {process.exitcode}", flush=True)
            found.lost_artifacts += 1
        self.number += 1
        return time.monotonic() - started

    def check(self, found: Kill) -> None:
        """Look at what the store has, as another machine sees it."""
        with tempfile.TemporaryDirectory() as elsewhere:
            try:
                self.committed = self.look(Store(STORE, Path(elsewhere)).current(*self.artifact)).name
            except MissingArtifact:
                found.lost_artifacts += self.committed is not None
            except (OSError, ValueError) as error:
                print(f"half-written: {error}", flush=True)
                found.half_written += 1

    def look(self, folder: Path) -> Path:
        """Raise ValueError for content that is not what the step makes."""
        return folder

    def kill(self) -> Kill:
        """Kill a run of the step at a random moment, and run it again to its end."""
        while True:
            process = self.start()
            time.sleep(self.chance.uniform(0, self.seconds))
            with suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                payloads = [child for child in parent.children() if "resources.payload" in child.cmdline()]
                victim = self.chance.choice([parent, *payloads])
                victim.kill()
                process.join(GIVEN_UP_AFTER)
                if process.exitcode != 0:
                    break
            process.join(GIVEN_UP_AFTER)  # it was faster this time
            self.number += 1
            self.finished()
        found = Kill(self.name, "payload" if victim in payloads else "step")
        self.check(found)
        found.recovered = self.run_again(found)
        self.check(found)
        return found


def run_training(home: Path, inputs: dict[str, Path]) -> None:
    """Materialize a small base checkpoint."""
    recipe = small_recipe()

    @dg.asset(io_manager_key="folders")
    def trained(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output[Path]]:
        from benchmarks.chaos import training

        assert recipe.pretraining is not None
        spec = training.Spec(**inputs, settings=recipe.pretraining, seed=0, max_documents=8)
        yield from compute.materialize(context, training.__name__, spec)

    _materialize(trained, home)


def run_upload(home: Path, number: int) -> None:
    """Materialize a folder of random files."""

    @dg.asset(io_manager_key="folders")
    def uploaded() -> Path:
        folder = home / "made"
        folder.mkdir(parents=True, exist_ok=True)
        chance = np.random.default_rng(number)
        for file in range(UPLOADED_FILES):
            (folder / f"{file:02}").write_bytes(chance.bytes(BYTES_A_FILE))
        return folder

    _materialize(uploaded, home)


def _materialize(asset: dg.AssetsDefinition, home: Path) -> None:
    resources = {
        "folders": FoldersIOManager(root=STORE, cache=str(home / "cache")),
        "compute": Compute(home=str(home)),
    }
    sys.exit(not dg.materialize([asset], resources=resources, raise_on_error=False).success)


def run_refresh(home: Path, catalogue: Path) -> None:
    """Materialize the raw corpus of the site."""
    from khmer_assets.definitions import build_definitions  # which makes the sample's graph, too slow for each step

    defs = build_definitions(small_recipe().model_copy(update={"catalogue": catalogue}), home)
    key = dg.AssetKey("raw_corpus")
    job = defs.resolve_implicit_job_def_def_for_assets([key])
    assert job is not None, "the graph has a raw_corpus"
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(
            instance=instance, partition_key="site", asset_selection=[key], raise_on_error=False
        )
    sys.exit(not result.success)


class Training(Step):
    """A pretraining; a kill may cost the steps since the last checkpoint, and the end is always the same model."""

    name, artifact = "training", ("trained", None)

    def __init__(self, folder: Path, chance: random.Random):
        recipe = small_recipe()
        texts = [f"{line}\n" for file in sorted(SAMPLE_TEXTS.glob("*.jsonl")) for line in file.read_text().splitlines()]
        rows = {"text": texts, "language": "khm", "split": "train", "copies": 1}
        held_out = pl.col("text").cum_count() % 50 == 0
        mixture = pl.DataFrame(rows).with_columns(split=pl.when(held_out).then(pl.lit("validation")).otherwise("split"))
        (folder / "mixture").mkdir(parents=True)
        mixture.write_parquet(folder / "mixture" / "data.parquet")
        tokenizer = random_model(folder / "tokenizer", recipe)
        assert recipe.pretraining is not None
        spec = packing.Spec(
            mixture=folder / "mixture",
            tokenizer=tokenizer,
            context_length=recipe.pretraining.context_length,
            seed=0,
        )
        packing.main(spec, PayloadRun(new_folder(folder / "packing")))
        self.inputs = {"packed": folder / "packing" / "output", "tokenizer": tokenizer, "mixture": folder / "mixture"}
        self.work = folder / "work" / "trained" / "all"
        self.expected: str | None = None
        super().__init__(folder, chance)
        self.expected = self.committed

    def function(self) -> Callable[..., None]:
        return run_training

    def arguments(self) -> tuple[Any, ...]:
        return self.folder, self.inputs

    def look(self, folder: Path) -> Path:
        if self.expected not in (None, folder.name):
            raise ValueError(f"the model is another than without a kill: {folder.name}, expected {self.expected}")
        return folder

    def run_again(self, found: Kill) -> float:
        done = self._steps()
        unfinished = list(self.work.glob("[!.]*/state"))
        seconds = super().run_again(found)
        again = self._steps()[len(done) :]
        if unfinished and done and again:
            found.lost_steps = max(0, done[-1] - again[0] + 1)
        self.finished()
        return seconds

    def finished(self) -> None:
        (self.work / PROGRESS).unlink(missing_ok=True)

    def _steps(self) -> list[int]:
        file = self.work / PROGRESS
        return [int(step) for step in re.findall(r"^step (\d+)/", file.read_text(), re.M)] if file.exists() else []


class Upload(Step):
    """A folder of files on their way to the object store."""

    name, artifact = "upload", ("uploaded", None)

    def function(self) -> Callable[..., None]:
        return run_upload

    def arguments(self) -> tuple[Any, ...]:
        return self.folder, self.number


class Refresh(Step):
    """A crawl of a site that has new pages each time; a page that was collected is in every later version."""

    name, artifact = "refresh", ("raw_corpus", "site")

    def __init__(self, folder: Path, chance: random.Random, address: str):
        folder.mkdir(parents=True)
        self.catalogue = folder / "catalogue.yaml"
        settings = {"start": address, "delay": 0, "timeout": 5, "max_seconds": 60}
        entry = {"name": "site", "kind": "website", "language": "khm", "license": "unknown", "settings": settings}
        self.catalogue.write_text(json.dumps({"sources": [entry]}))
        self.seen: set[str] = set()
        super().__init__(folder, chance)

    def function(self) -> Callable[..., None]:
        return run_refresh

    def arguments(self) -> tuple[Any, ...]:
        return self.folder, self.catalogue

    def look(self, folder: Path) -> Path:
        urls = pl.read_parquet(folder / "data.parquet", columns=["url"])["url"].to_list()
        if len(urls) != len(set(urls)) or self.seen - set(urls):
            raise ValueError(f"{len(urls)} rows of {len(set(urls))} pages, {len(self.seen - set(urls))} of them gone")
        self.seen = set(urls)
        return folder
