"""`khmer sql`: questions to the tables of the store, in DuckDB's SQL."""

import argparse
import csv
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

from khmer_assets.foundation.home import home
from resources.storage import DATA, REMOVED, Store, store_root

if TYPE_CHECKING:
    import duckdb

HELP = "ask the tables of the store in SQL"
ROWS_SHOWN = 200  # on a terminal
ROWS_AT_ONCE = 10_000
# `files`: a list of SQL strings. The name of a partition is that of the folder above the version's.
VIEW = """
CREATE VIEW "{name}" AS SELECT * EXCLUDE (file), regexp_extract(file, '([^/]+)/[^/]+/[^/]+$', 1) AS "partition"
FROM read_parquet([{files}], union_by_name = true, filename = 'file')
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A query, or none for a prompt."""
    parser.add_argument("query", nargs="?", help='such as "SELECT count(*) FROM training_mixture"; none: a prompt')


def main(arguments: argparse.Namespace) -> int:
    """Answer the query, or one after the other; as a table on a terminal, else as CSV.

    Each asset that is a table is a view with a column `partition`; the rows that it set aside are the view
    `<asset>_removed`, with rule, measure and reason.
    """
    import duckdb

    with ExitStack() as held, duckdb.connect(config={"autoinstall_known_extensions": "false"}) as connection:
        views = create_views(connection, Store(store_root(home()), home() / "cache"), held)
        if not views:
            print("there is no table yet; `khmer run` makes them", file=sys.stderr)
            return 2
        if arguments.query is not None:
            return _answer(connection, arguments.query, views)
        print(f"tables: {', '.join(views)}\nEnd a query with ; and leave with Ctrl-D.")
        for query in _queries():
            _answer(connection, query, views)
    return 0


def create_views(connection: "duckdb.DuckDBPyConnection", store: Store, held: ExitStack) -> list[str]:
    """A view for each asset that is kept as Parquet, and for what it has removed; their names.

    The versions that they read stay until `held` is closed.
    """
    found: dict[str, list[str]] = {}
    for asset in sorted(place.name for place in store.root.iterdir()) if store.root.exists() else []:
        for partition in sorted(place.name for place in (store.root / asset).iterdir()):
            version = store.version(asset, partition)
            if version is None or not any((store.place(asset, partition) / version).glob("*.parquet")):
                continue  # a model, which is not brought here for that
            for file in sorted(store.hold(held, asset, partition).glob("*.parquet")):
                name = f"{asset}_removed" if file.name == REMOVED else asset
                if file.name in (DATA, REMOVED) or not (file.parent / DATA).exists():  # a log has a file a day
                    found.setdefault(name, []).append("'" + str(file).replace("'", "''") + "'")
    for name, files in found.items():
        connection.execute(VIEW.format(name=name, files=", ".join(files)))
    return list(found)


def _queries() -> Iterator[str]:
    """What is typed, up to each semicolon."""
    import readline  # noqa: F401  input() then has a history and keys that move

    typed = ""
    while True:
        try:
            typed += input("...> " if typed else "sql> ") + "\n"
        except EOFError:
            print()
            return
        if typed.strip().endswith(";"):
            yield typed
            typed = ""


def _answer(connection: "duckdb.DuckDBPyConnection", query: str, views: list[str]) -> int:
    import duckdb

    try:
        if sys.stdout.isatty():
            if answer := connection.sql(query):  # not of a statement that answers nothing
                answer.show(max_rows=ROWS_SHOWN)
            return 0
        answered = connection.execute(query)
        table = csv.writer(sys.stdout)
        table.writerow(column[0] for column in answered.description or [])
        while rows := answered.fetchmany(ROWS_AT_ONCE):
            table.writerows(rows)
    except duckdb.Error as error:
        print(f"{error}\ntables: {', '.join(views)}", file=sys.stderr)
        return 2
    return 0
