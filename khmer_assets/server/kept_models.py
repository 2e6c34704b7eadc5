"""The files of served models and adapters: kept beside the server, so that the store may forget the version."""

import shutil
from pathlib import Path

from khmer_assets.foundation.files import link_files
from khmer_assets.server.state import ServerState


def kept_model(folder: Path, digest: str) -> Path:
    """Where the files of a served model or adapter are: hard links, so that the store may forget the version."""
    return folder / "models" / digest


def keep_model(folder: Path, model: Path, digest: str) -> None:
    """Keep the files of the folder `model` under their digest, unless they are kept already."""
    kept = kept_model(folder, digest)
    if not kept.exists():
        aside = kept.with_name(".aside")
        shutil.rmtree(aside, ignore_errors=True)
        link_files(model, aside)
        aside.rename(kept)


def forget_models(folder: Path, state: ServerState) -> None:
    """Delete what neither the release, nor the one before it, nor an adapter, nor the router needs."""
    keep = {kept.digest for kept in (state.release, state.former, *state.adapters, state.router) if kept is not None}
    forgotten = folder / "models" / ".forgotten"
    for entry in (folder / "models").glob("*"):
        if entry != forgotten and entry.name not in keep:
            shutil.rmtree(forgotten, ignore_errors=True)
            entry.rename(forgotten)  # one that is half deleted would be taken for a kept one
    shutil.rmtree(forgotten, ignore_errors=True)
