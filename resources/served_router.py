"""Serves a router beside the model and its adapters, and takes it away; no engine is touched.

What belongs here: what is checked before. What does not: what the gateway does with it (`khmer_assets/server/`).
"""

import json
import tempfile
import time
from pathlib import Path

from khmer_assets.server.kept_models import forget_models, keep_model
from khmer_assets.server.router_file import Router
from khmer_assets.server.state import (
    AUTO_NAME,
    ModelServerError,
    RouterVersion,
    Say,
    ServerState,
    StrongerModel,
    deployment_lock,
)
from resources.model_server import ModelServer

SECONDS = 20.0  # in which the gateway must offer it


def load_router(server: ModelServer, folder: Path, stronger: StrongerModel | None, say: Say = print) -> Path:
    """Serve the router in `folder`, whose name is its digest; return a folder with `endpoint.json`.

    What was served stays where `ModelServerError` is raised: for a router that cannot be read, that gains nothing, or
    that was trained with another model than the release's.
    """
    home = Path(server.home) / "server"
    about = Router.load(folder).about
    if not about.gains:
        raise ModelServerError(
            f"the router {folder.name} is right no more often than the model alone, or an adapter every time; "
            "bring more chats, or better adapters, and materialize router again"
        )
    with deployment_lock(home, say):
        state = ServerState.read(home)
        if state.release is None:
            raise ModelServerError("no release is served that could take the router; `make run` serves one")
        if about.base != state.release.base:
            raise ModelServerError(
                f"the router was trained with the model {about.base}, and the served release was made from "
                f"{state.release.base or 'one that is not known'}; materialize router again"
            )
        keep_model(home, folder, folder.name)
        found = RouterVersion(digest=folder.name, base=about.base, stronger=stronger)
        if found != state.router:
            state = state.model_copy(update={"router": found})
            state.write(home)
        forget_models(home, state)
    _wait(server)
    say(f"{AUTO_NAME} is served, with the router {folder.name}")
    endpoint = {"address": server.base_url, "digest": folder.name, "models": [AUTO_NAME]}
    place = Path(tempfile.mkdtemp(dir=home, prefix="endpoint-"))
    (place / "endpoint.json").write_text(json.dumps(endpoint, indent=1))
    return place


def unload_router(server: ModelServer, say: Say = print) -> None:
    """Serve no router, if there is one; what it has begun ends."""
    home = Path(server.home) / "server"
    with deployment_lock(home, say):
        state = ServerState.read(home)
        if state.router is not None:
            state.model_copy(update={"router": None}).write(home)
            say(f"{AUTO_NAME} is no longer served")


def _wait(server: ModelServer) -> None:
    """Return when the gateway offers it, or does not run. Raises `ModelServerError`."""
    deadline = time.monotonic() + SECONDS
    while (status := server.status()).running and AUTO_NAME not in status.models:
        if time.monotonic() > deadline:
            told = f"the gateway does not offer {AUTO_NAME} after {SECONDS:g} s; its log requests.jsonl may tell why"
            raise ModelServerError(told)
        time.sleep(0.1)
