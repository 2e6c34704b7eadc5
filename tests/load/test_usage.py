"""The audit log: every record a row that DuckDB reads, unreadable ones too, with pictures."""

import dagster as dg
import duckdb

from khmer_assets.definitions import assets_by_stage
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.server.audit_log import AuditLog, Record
from khmer_assets.server.requests import Chat
from resources.model_server import ModelServer
from resources.storage import FramesIOManager, Store

ANSWER = (
    b'{"choices":[{"index":0,"message":{"content":"\xe1\x9e\x94\xe1\x9e\xb6\xe1\x9e\x91"},"finish_reason":"stop"}],'
)
USAGE = b'"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}'


def materialized(folder):
    (asset,) = [
        asset for asset in assets_by_stage(Recipe.load(SAMPLE_RECIPE))["load"] if dg.AssetKey("audit_log") in asset.keys
    ]
    frames = FramesIOManager(root=str(folder / "store"), cache=str(folder / "cache"))
    result = dg.materialize(
        [asset], resources={"frames": frames, "model_server": ModelServer(home=str(folder), port=8000)}
    )
    (event,) = result.get_asset_materialization_events()
    return Store(str(folder / "store"), folder / "cache").current("audit_log"), event.materialization.metadata


def test_every_record_is_a_row(tmp_path):
    log = AuditLog(tmp_path / "audit", [], 30)
    for question in ("សួស្តី", "អរគុណ"):
        body = Chat.model_validate({"model": "khmer", "messages": [{"role": "user", "content": question}]})
        record = Record(log, "/v1/chat/completions", body, "k1")
        record.whole(ANSWER + USAGE)
        record.close("completed")
    day = next((tmp_path / "audit").glob("????-??-??"))
    (day / "broken.json").write_text("{")
    folder, metadata = materialized(tmp_path)
    query = f"select outcome, count(*), sum(prompt_tokens), any_value(output) from '{folder}/*.parquet' group by 1"
    rows = sorted(duckdb.sql(query).fetchall())
    assert rows == [("completed", 2, 8, "បាទ"), ("unreadable", 1, None, None)]
    assert {"latency", "usage"} <= set(metadata)


def test_no_request_is_an_empty_table(tmp_path):
    folder, _ = materialized(tmp_path)
    assert duckdb.sql(f"select count(*) from '{folder}/*.parquet'").fetchall() == [(0,)]
