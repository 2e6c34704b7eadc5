"""`khmer audit`: the record of one answer, or the asset audit_log, materialized and shown."""

import argparse
import sys

from khmer_assets.commands.on_demand import show
from khmer_assets.foundation.home import home
from khmer_assets.load.usage import REPORT
from khmer_assets.server.audit_log import find_record

HELP = "what was asked and answered"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An id."""
    parser.add_argument("id", nargs="?", help="x-request-id of the answer whose record is shown; else a table is made")


def main(arguments: argparse.Namespace) -> int:
    """Print the record, or how many answers there were on each day and where the table is."""
    if arguments.id is None:
        show("audit_log", REPORT)
        return 0
    record = find_record(home() / "audit", arguments.id)
    if record is None:
        print(f"no record has the id {arguments.id!r}; those older than retention_days are gone", file=sys.stderr)
        return 2
    print(record.read_text(encoding="utf-8"))
    return 0
