"""`khmer resume`: serves again after a restart of the machine."""

import argparse
import signal
import sys
import time
from types import FrameType

from khmer_assets.commands.served import server_of
from khmer_assets.recipe import Recipe
from khmer_assets.server.state import ModelServerError

HELP = "serve the last release again, after a restart of the machine"
LOOK_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to stay."""
    parser.add_argument(
        "--foreground", action="store_true", help="stay, start again what ends, and end the server on SIGTERM"
    )


def main(arguments: argparse.Namespace) -> int:
    """Start what was served last; in the foreground, until SIGTERM or Ctrl-C."""
    server = server_of(Recipe.current())
    if not arguments.foreground:
        server.resume()
        return 0
    signal.signal(signal.SIGTERM, _end)
    try:
        server.resume()
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                if server.keep_serving():
                    print("the supervisor had ended and is started again", flush=True)
            except ModelServerError as error:
                print(error, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once told, it ends
        server.stop()


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
