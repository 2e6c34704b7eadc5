"""`khmer snapshot`: takes the corpus as it is now for the next training."""

import argparse

from khmer_assets.commands.materialization import materialize
from khmer_assets.commands.steps import current
from khmer_assets.foundation.home import home

HELP = "take the corpus as it is now for the next training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Materialize training_mixture; what is trained on it is stale then."""
    materialize(current, home(), "training_mixture")
    print("The training mixture holds the corpus as it is now. The next `khmer run` trains on it.")
    return 0
