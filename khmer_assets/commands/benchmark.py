"""`khmer benchmark`: the asset serving_benchmark, materialized and shown."""

import argparse

from khmer_assets.commands.on_demand import show

HELP = "put load on the served model and measure what users see"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Measure and print the report."""
    show("serving_benchmark", "benchmark.md")
    return 0
