"""`khmer ask`: asks the served model."""

import argparse

from khmer_assets.commands.served import answer
from khmer_assets.recipe import Recipe

HELP = "ask the served model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The question."""
    parser.add_argument("question")


def main(arguments: argparse.Namespace) -> int:
    """Print the answer."""
    print(answer(Recipe.current(), arguments.question))
    return 0
