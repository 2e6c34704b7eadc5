"""`khmer resume`: serves again after a restart of the machine."""

import argparse

from khmer_assets.commands.served import current_server

HELP = "serve the last release again, after a restart of the machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Start what was served last."""
    current_server().resume()
    return 0
