"""`khmer stop`: ends what `khmer run` started."""

import argparse

from khmer_assets.commands import services
from khmer_assets.commands.served import server_of
from khmer_assets.recipe import Recipe

HELP = "end the servers that `run` started"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """End the servers. The artifacts stay."""
    stopped = services.stop()
    if server_of(Recipe.current()).stop():
        stopped.append("model server")
    print(f"stopped: {', '.join(stopped) or 'nothing was running'}")
    return 0
