"""`khmer run`: brings the graph up to date and everything up, and asks the served model a question."""

import argparse
import resource
import sys
import time
from contextlib import suppress

from khmer_assets.commands import services
from khmer_assets.commands.materialization import Summary, materialize_stale
from khmer_assets.commands.served import answer, server_of
from khmer_assets.foundation.home import home
from khmer_assets.recipe import Recipe
from khmer_assets.release.deployment import deploy, load_adapter
from resources.instance import open_instance
from resources.storage import MissingArtifact, Store, store_root

HELP = "bring everything up to date, start the servers and ask the model a question"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Materialize what is stale, start what is not running, ask the served model the recipe's question."""
    from khmer_assets.definitions import build_definitions

    started = time.monotonic()
    recipe = Recipe.current()
    defs = build_definitions(recipe)
    instance = open_instance(home())
    services.start()
    summary = materialize_stale(defs, instance)
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
    for adapter in recipe.adapters:
        with suppress(MissingArtifact):
            found = store.current("adapter_release", adapter.name)
            if not server.was_retired(found.name):
                load_adapter(server, found)
    print(f"\n  question   {recipe.serving.question}\n  answer     {answer(recipe, recipe.serving.question)}\n")
    for name, address in services.addresses().items():
        print(f"  {name:<9}  {address}")
    print(f"  model      {server.base_url}  (key in {server.key_file})")
    print(f"  chat page  {server.address}")
    print(f"  report     {store.current('benchmark_report') / 'report.md'}\n")
    return 1 if summary.failed else 0


def _tell(summary: Summary, seconds: float) -> None:
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"\n{len(summary.materialized)} materialized, {summary.fresh} up to date, {seconds:.0f} s, ", end="")
    print(f"largest process {usage / 1024:,.0f} MB")
    for name, reason in summary.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    for name, reason in summary.held_back.items():
        print(f"held back: {name}, because {reason}", file=sys.stderr)
