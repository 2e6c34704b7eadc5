"""`khmer exports`: measures all variants beside each other, and puts the table into the benchmark report."""

import argparse

from khmer_assets.commands.materialization import MaterializationError, materialize
from khmer_assets.commands.on_demand import show
from khmer_assets.commands.steps import current
from khmer_assets.foundation.home import home
from resources.storage import MissingArtifact, Store, store_root

HELP = "measure memory and speed of all variants in turn, and put the table into the benchmark report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Measure, make the report anew, and print the table. Raises `MaterializationError` where there is no variant."""
    try:
        Store(store_root(home()), home() / "cache").current("benchmark_report")
    except MissingArtifact as error:
        raise MaterializationError(f"{error}: `khmer run` makes it, and the variants that are measured") from None
    show("export_comparison", "exports.md")
    materialize(current, home(), "benchmark_report")
    return 0
