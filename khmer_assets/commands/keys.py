"""`khmer keys`: the API keys of users. What is changed here counts at once, for a gateway that runs too."""

import argparse
import sys
from datetime import UTC, datetime

from khmer_assets.foundation.home import disk_fault, home
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.recipe import Recipe
from khmer_assets.server.key_usage import KeyUsage
from khmer_assets.server.keys import UNCHANGED, Key, KeyFile
from khmer_assets.server.state import ModelServerError

HELP = "API keys of users"
NONE = "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An action."""
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a key; it is shown once")
    create.add_argument("name", help="whose it is")
    create.add_argument("--tier", default="standard", help="one of the recipe's serving.gateway.tiers")
    change = actions.add_parser("change", help="give a key another tier, end or budget")
    change.add_argument("id")
    change.add_argument("--tier", help="one of the recipe's serving.gateway.tiers")
    for action, none in ((create, ""), (change, f", or {NONE}")):
        action.add_argument("--expires", metavar="DATE", help=f"the day (UTC) from which it is worth nothing{none}")
        action.add_argument("--monthly-tokens", metavar="N", help=f"prompts and answers of a calendar month{none}")
    rotate = actions.add_parser("rotate", help="give a key another text; it is shown once")
    rotate.add_argument("id")
    rotate.add_argument("--keep-hours", type=float, default=0, help="how long the text until now still counts")
    usage = actions.add_parser("usage", help="show what keys have used, by day")
    usage.add_argument("id", nargs="?")
    usage.add_argument("--days", type=int, default=31)
    actions.add_parser("list", help="show all keys")
    actions.add_parser("revoke", help="end a key").add_argument("id")


def main(arguments: argparse.Namespace) -> int:
    """Create, change, rotate, list or revoke keys, or show what they have used."""
    folder = home() / "server"
    try:
        return ACTIONS[arguments.action](KeyFile(folder), arguments)
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
    except OSError as error:
        if disk_fault(error):
            raise
        raise ModelServerError(str(error)) from None
    return 2


def _create(keys: KeyFile, arguments: argparse.Namespace) -> int:
    tier = _tier(arguments.tier)
    key, text = keys.create(arguments.name, tier, _expires(arguments.expires), _tokens(arguments.monthly_tokens))
    print(f"{text}\n(id {key.id}, tier {key.tier}; it is not shown again)")
    return 0


def _change(keys: KeyFile, arguments: argparse.Namespace) -> int:
    expires = UNCHANGED if arguments.expires is None else _expires(arguments.expires)
    tokens = UNCHANGED if arguments.monthly_tokens is None else _tokens(arguments.monthly_tokens)
    print(_line(keys.change(arguments.id, arguments.tier and _tier(arguments.tier), expires, tokens)))
    return 0


def _rotate(keys: KeyFile, arguments: argparse.Namespace) -> int:
    if not 0 <= arguments.keep_hours <= 24 * 365:
        raise RecipeError(f"--keep-hours: given {arguments.keep_hours:g}, expected at most the hours of a year")
    key, text = keys.rotate(arguments.id, arguments.keep_hours)
    print(f"{text}\n(id {key.id}; it is not shown again, the one before counts for {arguments.keep_hours:g} hours)")
    return 0


def _revoke(keys: KeyFile, arguments: argparse.Namespace) -> int:
    print(f"revoked: {keys.revoke(arguments.id).name}")
    return 0


def _list(keys: KeyFile, arguments: argparse.Namespace) -> int:
    for key in keys.all():
        print(_line(key))
    return 0


def _usage(keys: KeyFile, arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.days <= 100_000:
        raise RecipeError(f"--days: given {arguments.days}, expected 1 or more")
    names = {key.id: key.name for key in keys.all()}
    print(f"{'day':10}  {'key':8}  {'requests':>9}  {'prompt tokens':>14}  {'answer tokens':>14}  name")
    for used in KeyUsage(keys.folder).days(arguments.days, arguments.id):
        figures = f"{used.requests:>9,}  {used.prompt_tokens:>14,}  {used.answer_tokens:>14,}"
        print(f"{used.day}  {used.key:8}  {figures}  {names.get(used.key, '')}")
    return 0


ACTIONS = {
    "create": _create, "change": _change, "rotate": _rotate, "revoke": _revoke, "list": _list, "usage": _usage
}  # fmt: skip


def _line(key: Key) -> str:
    state = f"revoked {key.revoked:%Y-%m-%d}" if key.revoked else "expired" if key.has_expired() else "valid"
    until = f"until {key.expires:%Y-%m-%d}" if key.expires else ""
    budget = f"{key.monthly_tokens:,} tokens a month" if key.monthly_tokens is not None else ""
    return f"{key.id}  {key.tier:12}  {key.created:%Y-%m-%d}  {state:18}  {until:16}  {budget:26}  {key.name}"


def _tier(name: str) -> str:
    if name not in (tiers := Recipe.current().serving.gateway.tiers):
        raise RecipeError(f"--tier: given {name!r}, expected one of {', '.join(tiers)}")
    return name


def _expires(day: str | None) -> datetime | None:
    if day in (None, NONE):
        return None
    try:
        return datetime.strptime(day or "", "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise RecipeError(f"--expires: given {day!r}, expected a day such as 2027-01-31, or {NONE}") from None


def _tokens(count: str | None) -> int | None:
    if count in (None, NONE):
        return None
    if not (count or "").isdecimal() or int(count or 0) < 1:
        raise RecipeError(f"--monthly-tokens: given {count!r}, expected a whole number from 1 on, or {NONE}")
    return int(count or 0)
