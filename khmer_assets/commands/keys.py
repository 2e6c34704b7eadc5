"""`khmer keys`: the API keys of users."""

import argparse
import sys

from khmer_assets.foundation.home import home
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.recipe import Recipe
from khmer_assets.server.keys import KeyFile

HELP = "API keys of users"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An action."""
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key; it is shown once")
    create.add_argument("name", help="whose it is")
    create.add_argument("--tier", default="standard", help="one of the recipe's serving.gateway.tiers")
    actions.add_parser("list", help="show all keys")
    actions.add_parser("revoke", help="end a key").add_argument("id")


def main(arguments: argparse.Namespace) -> int:
    """Create, list or revoke keys."""
    recipe = Recipe.current()
    keys = KeyFile(home() / "server")
    if arguments.action == "create":
        if arguments.tier not in (tiers := recipe.serving.gateway.tiers):
            raise RecipeError(f"--tier: given {arguments.tier!r}, expected one of {', '.join(tiers)}")
        key, text = keys.create(arguments.name, arguments.tier)
        print(f"{text}\n(id {key.id}, tier {key.tier}; it is not shown again)")
    elif arguments.action == "revoke":
        try:
            print(f"revoked: {keys.revoke(arguments.id).name}")
        except LookupError as error:
            print(error.args[0], file=sys.stderr)
            return 2
    else:
        for key in keys.all():
            state = f"revoked {key.revoked:%Y-%m-%d}" if key.revoked else "valid"
            print(f"{key.id}  {key.tier:12}  {key.created:%Y-%m-%d}  {state:18}  {key.name}")
    return 0
