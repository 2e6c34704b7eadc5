"""The command line: `khmer COMMAND`, of which `khmer --help` tells; a module a command.

A command's module has `HELP`, `add_arguments(parser)` and `main(arguments)`, which returns the exit status.
"""

import argparse
import logging
import os
import signal
import sys
from types import ModuleType

from khmer_assets.commands import (
    adapters,
    ask,
    audit,
    benchmark,
    estimate,
    evaluate,
    exports,
    init,
    keys,
    plan,
    resume,
    rollback,
    run,
    snapshot,
    sql,
    stop,
    tune,
)
from khmer_assets.commands.materialization import MaterializationError
from khmer_assets.commands.run import AlreadyRunning
from khmer_assets.foundation.home import HOME_VARIABLE, disk_fault, home
from khmer_assets.foundation.processes import PortInUse
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.server.state import ModelServerError
from khmer_assets.sources.rows import SourceError

COMMANDS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(init, plan, estimate, run, snapshot, stop, ask, resume, rollback),
        *(adapters, audit, sql, evaluate, exports, benchmark, tune, keys),
    )
}


def main() -> int:
    """Parse the command line and carry it out; a user's mistake ends with one message and status 2."""
    parser = argparse.ArgumentParser(prog="khmer", description="From raw Khmer text to a served chat model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(commands.add_parser(name, help=module.HELP, description=module.HELP))
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # it logs an interrupt while it closes as an error
    os.environ[HOME_VARIABLE] = str(home())  # one place for the processes that are started from here
    try:
        return int(COMMANDS[arguments.command].main(arguments))
    except (RecipeError, SourceError, PortInUse, ModelServerError, MaterializationError, AlreadyRunning) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the next run goes on from here", file=sys.stderr)
        return 130
    except Exception as error:
        if (fault := disk_fault(error)) is None:
            raise
        print(fault, file=sys.stderr)
        return 2
