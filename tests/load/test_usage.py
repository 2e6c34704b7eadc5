"""The audit log: every record a row of its day that DuckDB reads, unreadable ones too, with pictures."""

import dagster as dg
import duckdb

from khmer_assets.definitions import assets_by_stage
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.server.audit_log import AuditLog, Record
from khmer_assets.server.requests import Chat
from resources.compute import Compute
from resources.instance import ON_DEMAND
from resources.model_server import ModelServer
from resources.storage import FoldersIOManager, Store

LOG = dg.AssetKey("audit_log")
ANSWER = (
    b'{"choices":[{"index":0,"message":{"content":"\xe1\x9e\x94\xe1\x9e\xb6\xe1\x9e\x91"},"finish_reason":"stop"}],'
)
USAGE = b'"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}'


def materialized(folder):
    (asset,) = [asset for asset in assets_by_stage(Recipe.load(SAMPLE_RECIPE))["load"] if LOG in asset.keys]
    resources = {
        "folders": FoldersIOManager(root=str(folder / "store"), cache=str(folder / "cache")),
        "compute": Compute(home=str(folder)),
        "model_server": ModelServer(home=str(folder), port=8000),
    }
    result = dg.materialize([asset], resources=resources)
    (event,) = result.get_asset_materialization_events()
    return Store(str(folder / "store"), folder / "cache").current("audit_log"), event.materialization.metadata


def answered(log, question):
    body = Chat.model_validate({"model": "khmer", "messages": [{"role": "user", "content": question}]})
    record = Record(log, "/v1/chat/completions", body, "k1")
    record.whole(ANSWER + USAGE)
    record.close("completed")


def test_every_record_is_a_row_of_its_day_and_only_days_with_new_ones_are_read_again(tmp_path):
    log = AuditLog(tmp_path / "audit", [], 30)
    for question in ("សួស្តី", "អរគុណ"):
        answered(log, question)
    day = next((tmp_path / "audit").glob("????-??-??"))
    (day / "broken.json").write_text("{")
    before = day.with_name("2026-01-05")
    before.mkdir()
    for file in list(day.glob("*_*.json")):
        (before / file.name).write_text(file.read_text())
    folder, metadata = materialized(tmp_path)
    assert {file.name for file in folder.glob("*.parquet")} == {f"{day.name}.parquet", "2026-01-05.parquet"}
    query = "select outcome, count(*), sum(prompt_tokens), any_value(output) from '{}/*.parquet' group by 1"
    rows = sorted(duckdb.sql(query.format(folder)).fetchall())
    assert rows == [("completed", 4, 16, "បាទ"), ("unreadable", 1, None, None)]
    assert {"latency", "usage", "by_day"} <= set(metadata)
    assert metadata["records_read"].value == 5

    answered(log, "តើអ្នកសុខសប្បាយទេ?")
    folder, metadata = materialized(tmp_path)
    assert (metadata["records"].value, metadata["records_read"].value) == (6, 4)
    times = f"select time from '{folder}/{day.name}.parquet' where time is not null"
    assert (found := duckdb.sql(times).fetchall()) == sorted(found)
    assert len(found) == 3


def test_no_request_is_an_empty_table(tmp_path):
    folder, _ = materialized(tmp_path)
    assert duckdb.sql(f"select count(*) from '{folder}/*.parquet'").fetchall() == [(0,)]


def test_a_run_makes_no_table_before_anything_was_asked():
    (asset,) = [asset for asset in assets_by_stage(Recipe.load(SAMPLE_RECIPE))["load"] if LOG in asset.keys]
    assert ON_DEMAND.items() <= asset.tags_by_key[LOG].items()
