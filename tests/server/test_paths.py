"""Each field of each path does what docs/serving.md says of it, with a real engine; the page names every field."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from khmer_assets.foundation.home import PROJECT
from khmer_assets.server.keys import KeyFile
from khmer_assets.server.paths import BODIES, parse
from resources.model_server import ModelServer
from tests.ports import free_port
from tests.server.api import ROWS, Api
from tests.server.test_llama_cpp import gguf_of
from tests.tiny_model import RAIN, TOOL_MODEL_LENGTH, WEATHER, save_embedder, save_tool_model

CONTEXT = TOOL_MODEL_LENGTH
PAGE = (PROJECT / "docs" / "serving.md").read_text()
TIERS = {"small": {"schema_bytes": 500, "schema_depth": 6, "tokens_a_minute": 10_000}}


def rows_of_the_page() -> list[set[str]]:
    """The fields that each row of the table names."""
    table = PAGE.partition("## Field by field")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [set(re.findall(r"`([a-z_]+)`", cell)) for cell in rows]


def test_the_page_names_every_field_and_each_of_its_rows_is_asked_of_real_engines():
    rows = rows_of_the_page()
    fields = set().union(*(body.model_fields for body in BODIES.values()))
    assert fields <= set().union(*rows), "the table of docs/serving.md has a row for each field"
    untested = [row for row in rows if not row & ROWS.keys()]
    assert not untested, "tests/server/api.py has a function for each row"


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("chat/completions", "max_tokens"),
        ("chat/completions", "max_completion_tokens"),
        ("responses", "max_output_tokens"),
    ],
)
def test_a_limit_above_what_the_model_reads_is_as_much_as_it_reads(path, limit):
    asked = {"model": "khmer", "input" if path == "responses" else "messages": RAIN}
    for given, meant in ((1_000, 640), (640, 640), (3, 3), (None, None)):
        body = parse(BODIES[f"/v1/{path}"], json.dumps({**asked, limit: given}).encode(), CONTEXT)
        assert getattr(body, limit) == meant


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tools = save_tool_model(folder / "tools")
    embedder = save_embedder(tools, folder / "embedder")
    home = str(tmp_path_factory.mktemp("home"))
    server = ModelServer(home=home, port=free_port(), embedder=str(embedder), gateway={"tiers": TIERS})
    server.deploy(gguf_of(tools, None), "a" * 16, CONTEXT)
    yield server
    server.stop()


@pytest.fixture
def api(server) -> Api:
    return Api(server.address, server.api_key(), "llama.cpp")


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_llama_cpp_does_what_the_page_says(api, row):
    ROWS[row](api)


def records(server: ModelServer) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(Path(server.home).glob("audit/????-??-??/*.json"))]


@pytest.mark.slow
def test_what_a_key_of_a_tier_asks_is_bounded_charged_and_recorded(server):
    _, text = KeyFile(Path(server.home) / "server").create("សុខា", "small", monthly_tokens=10_000)
    small = Api(server.address, text, "llama.cpp")
    large = {"type": "object", "description": "x" * 500}
    small.refused("may send 500 a request", response_format=schema_format(large))
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(6):
        deep = {"type": "array", "items": deep}
    small.refused("7 objects and lists within each other", tools=[tool_with(deep)])

    def left() -> int:
        headers = small.client.models.with_raw_response.list().headers
        return int(headers["x-ratelimit-remaining-tokens"])

    before = left()
    answer = small.respond(tools=[{"type": "function", **WEATHER["function"]}], user="ដារ៉ា", metadata={"class": "៧"})
    embedded = small.client.embeddings.create(model="khmer-embedding", input=["ស្រូវ"] * 50)
    used = answer.usage.total_tokens + embedded.usage.total_tokens
    assert before - used <= left() <= before - used + 200  # some of a minute is given back meanwhile
    mine = []
    while len(mine) < 2:
        mine = [record for record in records(server) if record["key_id"] == text.split("-")[1]]
        time.sleep(0.01)
    called, made = sorted(mine, key=lambda record: record["time"])
    assert (called["endpoint"], called["user"], called["metadata"]) == ("/v1/responses", "ដារ៉ា", {"class": "៧"})
    assert called["parameters"]["tools"] == [WEATHER]
    assert [json.loads(call["arguments"]) for call in called["tool_calls"]] == [{"city": "ភ្នំពេញ"}]
    assert called["messages"] == RAIN and called["usage"]["total_tokens"] == answer.usage.total_tokens
    assert made["endpoint"] == "/v1/embeddings" and made["user_input"] == ["ស្រូវ"] * 50
    assert made["usage"]["prompt_tokens"] == embedded.usage.prompt_tokens and made["output"] is None


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def tool_with(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "deep", "parameters": parameters}}
