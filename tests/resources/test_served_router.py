"""A router is served only where it can be read, gains something, and is of the served release; then it can go again."""

import json

import pytest

from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.router_file import ABOUT
from khmer_assets.server.state import ModelServerError, ServerState, StrongerModel
from resources.model_server import ModelServer
from resources.served_router import load_router, unload_router
from tests.server.routers import BASE, ROUTED, learned

DIGEST = "e" * 16


@pytest.fixture
def server(tmp_path):
    server = ModelServer(home=str(tmp_path), port=8399)
    ServerState(release=ROUTED).write(tmp_path / "server")
    return server


@pytest.fixture
def router(tmp_path):
    folder = tmp_path / "store" / DIGEST
    folder.mkdir(parents=True)
    learned().save(folder)
    return folder


def change(router, **changes):
    about = json.loads((router / ABOUT).read_text())
    (router / ABOUT).write_text(json.dumps(about | changes))


def test_it_is_served_with_its_stronger_model_until_it_is_taken_away(server, router, tmp_path):
    stronger = StrongerModel(name="large", address="http://127.0.0.1:1/v1", model="m")
    endpoint = load_router(server, router, stronger) / "endpoint.json"
    assert json.loads(endpoint.read_text())["models"] == ["khmer-auto"]
    state = ServerState.read(tmp_path / "server")
    assert (state.router.digest, state.router.base, state.router.stronger) == (DIGEST, BASE, stronger)
    kept = kept_model(tmp_path / "server", DIGEST)
    assert (kept / ABOUT).is_file()
    load_router(server, router, None)
    assert ServerState.read(tmp_path / "server").router.stronger is None
    unload_router(server)
    assert ServerState.read(tmp_path / "server").router is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"figures": {}}, "no more often than the model alone"),
        ({"base": "f" * 16}, "materialize router again"),
        ({"version": 9}, "cannot be read"),
    ],
)
def test_one_that_must_not_be_served_leaves_the_one_that_is(server, router, tmp_path, changes, told):
    load_router(server, router, None)
    other = tmp_path / "store" / ("f" * 16)
    other.mkdir()
    learned().save(other)
    change(other, **changes)
    with pytest.raises(ModelServerError, match=told):
        load_router(server, other, None)
    assert ServerState.read(tmp_path / "server").router.digest == DIGEST


def test_nothing_is_served_yet(router, tmp_path):
    with pytest.raises(ModelServerError, match="no release is served"):
        load_router(ModelServer(home=str(tmp_path / "new"), port=8399), router, None)
