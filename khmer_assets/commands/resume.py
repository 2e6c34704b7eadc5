"""`khmer resume`: serves again after a restart of the machine."""

import argparse

from khmer_assets.commands.served import server_of
from khmer_assets.recipe import Recipe

HELP = "serve the last release again, after a restart of the machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Start what was served last."""
    server_of(Recipe.current()).resume()
    return 0
