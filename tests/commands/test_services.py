"""Dagster's UI shows the recipe of the last run, from one server, and nothing is left running when a port is taken."""

import shutil
import socket
import time

import httpx
import psutil
import pytest
import yaml

from khmer_assets.commands import services
from khmer_assets.foundation.processes import PortInUse
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from tests.ports import free_port


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The sample's recipe with a catalogue of its own, and a home for the services."""
    settings = yaml.safe_load(SAMPLE_RECIPE.read_text()) | {"catalogue": "sources.yaml"}
    settings["adapters"][0]["chats"] = str(Recipe.load(SAMPLE_RECIPE).adapters[0].chats)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    write_catalogue(tmp_path, "poems")
    monkeypatch.setenv("KHMER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KHMER_RECIPE", str(tmp_path / "recipe.yaml"))
    monkeypatch.setenv("KHMER_UI_PORT", str(free_port()))
    monkeypatch.setenv("KHMER_MLFLOW_PORT", str(free_port()))
    yield tmp_path / "recipe.yaml"
    services.stop()
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


def write_catalogue(folder, *names):
    entry = {"kind": "generated", "license": "Apache-2.0", "settings": {"documents": 5, "seed": 1}}
    (folder / "sources.yaml").write_text(yaml.safe_dump({"sources": [{"name": name, **entry} for name in names]}))


def shown_sources() -> list[str]:
    """The partitions of raw_corpus that the UI shows."""
    query = '{assetNodeOrError(assetKey: {path: "raw_corpus"}) {... on AssetNode {partitionKeys}}}'
    with httpx.Client(trust_env=False, timeout=30) as client:
        try:
            answer = client.post(f"{services.addresses()['Dagster']}/graphql", json={"query": query}).json()
        except (httpx.TransportError, ValueError):
            return []
    return list((answer.get("data") or {}).get("assetNodeOrError", {}).get("partitionKeys", []))


def wait_until_shown(expected: list[str]) -> None:
    deadline = time.monotonic() + 180
    while (found := shown_sources()) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    assert found == expected


def test_a_taken_port_leaves_nothing_running(recipe):
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(services.addresses()["MLflow"].rpartition(":")[2])))
        other.listen()
        with pytest.raises(PortInUse, match="KHMER_MLFLOW_PORT"):
            services.start(Recipe.current())
    assert services.stop() == []


@pytest.mark.slow
def test_the_ui_follows_the_catalogue_and_asks_one_server(recipe):
    services.start(Recipe.current())
    wait_until_shown(["poems"])
    write_catalogue(recipe.parent, "poems", "songs")
    services.start(Recipe.current())
    wait_until_shown(["poems", "songs"])
    home = str(recipe.parent / "home")
    serving = [
        p for p in psutil.process_iter(["cmdline", "environ"]) if (p.info["environ"] or {}).get("KHMER_HOME") == home
    ]
    graphs = [p for p in serving if p.info["cmdline"][-1:] and {"api", "grpc"} <= set(p.info["cmdline"])]
    assert len(graphs) == 1, [p.info["cmdline"] for p in graphs]
