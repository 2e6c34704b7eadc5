"""`khmer adapters`: shows the adapters of the served model, or takes one away."""

import argparse

from khmer_assets.commands.served import server_of
from khmer_assets.recipe import Recipe

HELP = "adapters of the served model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An action."""
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="show those that are served")
    actions.add_parser("retire", help="serve one no longer").add_argument("name")


def main(arguments: argparse.Namespace) -> int:
    """List the adapters, after one was retired if that was asked."""
    server = server_of(Recipe.current())
    if arguments.action == "retire":
        server.retire_adapter(arguments.name)
    for adapter in server.adapters():
        print("  ".join(adapter.names))
    return 0
