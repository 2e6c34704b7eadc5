"""`khmer rollback`: goes back to the release before the present one."""

import argparse

from khmer_assets.commands.served import server_of
from khmer_assets.foundation.home import home
from khmer_assets.recipe import Recipe
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.state import MODEL_NAME
from resources.tracking import mark_served

HELP = "serve the release before the present one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Serve it, and mark it in the model registry."""
    digest = server_of(Recipe.current()).rollback()
    mark_served(home(), MODEL_NAME, digest, kept_model(home() / "server", digest))
    print(f"served is now {digest}")
    return 0
