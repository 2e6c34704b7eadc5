"""`khmer run`: brings the graph up to date and everything up, and asks the served model a question."""

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from khmer_assets.commands import services
from khmer_assets.commands.materialization import Summary, materialize_stale
from khmer_assets.commands.served import answer, server_of
from khmer_assets.commands.steps import current
from khmer_assets.foundation.home import home
from khmer_assets.recipe import Recipe
from khmer_assets.release.deployment import deploy, load_adapter
from resources.model_server import ModelServer, ModelServerError
from resources.served_router import load_router, unload_router
from resources.storage import MissingArtifact, Store, store_root

HELP = "bring everything up to date, start the servers and ask the model a question"


class AlreadyRunning(Exception):
    """Another process brings the same graph up to date."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to tell only."""
    parser.add_argument("--dry-run", action="store_true", help="tell what is missing or stale, and make nothing")


def main(arguments: argparse.Namespace) -> int:
    """Materialize what is stale, start what is not running, ask the served model the recipe's question."""
    with _alone(home()):
        return _run(arguments.dry_run)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Raises `AlreadyRunning` while another process is in here."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "run.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise AlreadyRunning(f"`khmer run` is at work already ({lock.read()}); wait for it, or end it") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        lock.flush()
        yield


def _run(dry_run: bool) -> int:
    started = time.monotonic()
    recipe = Recipe.current()
    if dry_run:
        summary = materialize_stale(current, home(), dry_run=True)
        print(f"{summary.fresh} up to date")
        return 0
    services.start(recipe)
    summary = materialize_stale(current, home())
    _tell(summary, time.monotonic() - started)
    store = Store(store_root(home()), home() / "cache")
    try:
        release = store.current("release")
    except MissingArtifact:
        print("There is no release to serve yet; the lines above say why.", file=sys.stderr)
        return 1
    server = server_of(recipe)
    if server.rolled_back() == release.name:
        print(f"release {release.name[:12]} was rolled back; materialize served_model to serve it all the same")
        server.resume()
    else:
        deploy(server, release, recipe.serving.max_model_length)
    releases: list[tuple[str, str | None]] = [("adapter_release", adapter.name) for adapter in recipe.adapters]
    for asset, name in [*releases, *([("failure_release", None)] if recipe.failures else [])]:
        with suppress(MissingArtifact):
            found = store.current(asset, name)
            if not server.was_retired(found.name):
                load_adapter(server, found)
    _route(server, store, recipe)
    print(f"\n  question   {recipe.serving.question}\n  answer     {answer(recipe, recipe.serving.question)}\n")
    for name, address in services.addresses().items():
        print(f"  {name:<9}  {address}")
    print(f"  model      {server.base_url}  (key in {server.key_file})")
    print(f"  chat page  {server.address}/#key={server.api_key()}")
    print(f"  report     {store.current('benchmark_report') / 'report.md'}\n")
    return 1 if summary.failed else 0


def _route(server: ModelServer, store: Store, recipe: Recipe) -> None:
    """Serve the router that there is, if it is of this release; without one in the recipe, serve none."""
    if recipe.router is None:
        unload_router(server)
        return
    try:
        load_router(server, store.current("router"), recipe.stronger)
    except MissingArtifact:
        print("khmer-auto: no router is trained yet; the job train_router does")
    except ModelServerError as error:
        print(f"khmer-auto: {error}", file=sys.stderr)


def _tell(summary: Summary, seconds: float) -> None:
    print(f"\n{len(summary.materialized)} materialized, {summary.fresh} up to date, {seconds:.0f} s, ", end="")
    print(f"largest process {summary.peak_megabytes:,.0f} MB")
    if summary.failed:
        print(f"failed, as told above: {', '.join(summary.failed)}", file=sys.stderr)
    if summary.held_back:
        print(f"held back by that: {', '.join(summary.held_back)}", file=sys.stderr)
