"""`khmer tune`: the asset serving_tuning, materialized and shown."""

import argparse

from khmer_assets.commands.on_demand import show

HELP = "search the engine's best settings for the next deployment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Search and print the report."""
    show("serving_tuning", "tuning.md")
    return 0
