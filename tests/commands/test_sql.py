"""`khmer sql` asks the tables of the store."""

import io

import dagster as dg
import polars as pl
import pytest

from khmer_assets.commands import main
from khmer_assets.foundation.home import HOME_VARIABLE
from resources.storage import FoldersIOManager, FramesIOManager

SET_ASIDE = {"rule": pl.String, "measure": pl.Float64, "reason": pl.String}


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["news", "it's"]), io_manager_key="frames")
def lines(context: dg.AssetExecutionContext) -> pl.LazyFrame:
    rows = [(f"ផ្កាឈូក {context.partition_key}", None, None, None), ("x", "too_short", 1.0, "1 character")]
    return pl.LazyFrame(rows, schema={"text": pl.String, **SET_ASIDE}, orient="row")


@dg.asset(io_manager_key="folders")
def model(tmp: dg.ResourceParam) -> object:
    folder = tmp / "made"
    folder.mkdir()
    (folder / "weights").write_text("no table")
    return folder


@pytest.fixture(autouse=True)
def filled_home(tmp_path, monkeypatch):
    storage = {"root": str(tmp_path / "store"), "cache": str(tmp_path / "cache")}
    resources = {"frames": FramesIOManager(**storage), "folders": FoldersIOManager(**storage),
                 "tmp": dg.ResourceDefinition.hardcoded_resource(tmp_path)}  # fmt: skip
    for partition in ("news", "it's"):
        dg.materialize([lines], resources=resources, partition_key=partition)
    dg.materialize([model], resources=resources)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))


def ask(monkeypatch, capsys, *query: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["khmer", "sql", *query])
    status = main()
    told = capsys.readouterr()
    return status, told.out, told.err


def test_partitions_are_a_column_and_what_was_set_aside_is_a_view_beside(monkeypatch, capsys):
    query = 'SELECT "partition", text FROM lines ORDER BY 1'
    assert ask(monkeypatch, capsys, query)[1].split() == ["partition,text", "it's,ផ្កាឈូក", "it's", "news,ផ្កាឈូក", "news"]
    status, out, _ = ask(monkeypatch, capsys, "SELECT rule, count(*) AS n FROM lines_removed GROUP BY rule")
    assert (status, out.split()) == (0, ["rule,n", "too_short,2"])


def test_a_prompt_takes_queries_of_several_lines_and_outlives_a_wrong_one(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("SELEC;\nSELECT count(*) AS n\nFROM lines;\n"))
    status, out, err = ask(monkeypatch, capsys)
    assert status == 0
    assert "tables: lines, lines_removed" in out and "\nn\r\n2" in out.replace("...> ", "\n")
    assert "syntax error" in err


def test_a_wrong_query_names_the_tables(monkeypatch, capsys):
    status, _, err = ask(monkeypatch, capsys, "SELECT * FROM nothing")
    assert status == 2
    assert "nothing does not exist" in err and "tables: lines, lines_removed" in err


def test_without_a_table_it_says_what_makes_them(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "new"))
    assert ask(monkeypatch, capsys, "SELECT 1")[2] == "there is no table yet; `khmer run` makes them\n"
