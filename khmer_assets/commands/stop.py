"""`khmer stop`: ends what `khmer run` started."""

import argparse

from khmer_assets.commands import services
from khmer_assets.commands.served import current_server

HELP = "end the servers that `run` started"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """End the servers. The artifacts stay."""
    stopped = services.stop()
    if current_server().stop():
        stopped.append("model server")
    print(f"stopped: {', '.join(stopped) or 'nothing was running'}")
    return 0
