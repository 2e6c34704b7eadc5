"""What the release that is served has scored, kept beside the server: the store forgets a version that a rollback has
brought back, once newer ones are there."""

import os
import shutil
import tempfile
from pathlib import Path

from khmer_assets.evaluation.evaluate import SCORES
from khmer_assets.foundation.files import in_turn, link_file
from khmer_assets.server.state import ServerState

RECORD = "release.json"


def keep_scores(home: Path, release: Path) -> None:
    """Keep what a version of `release` has scored, and forget those that are neither served nor next in a rollback."""
    state = ServerState.read(home / "server")
    needed = {release.name, *(one.digest for one in (state.release, state.former) if one)}
    kept = _kept(home)
    with in_turn(kept):
        for folder in kept.iterdir():
            if folder.name not in needed:
                shutil.rmtree(folder)
        if not (kept / release.name).exists():
            aside = Path(tempfile.mkdtemp(dir=kept))
            for name in (RECORD, SCORES):
                if (release / name).exists():
                    link_file(release / name, aside / name)
            os.replace(aside, kept / release.name)


def compared_release(home: Path, last: Path | None) -> Path | None:
    """The folder with the record and the scores of the release that is served, also after a rollback; of the `last` one
    that was made where none is served, or nothing was kept of it."""
    served = ServerState.read(home / "server").release
    if served is None or (last is not None and last.name == served.digest):
        return last
    kept = _kept(home) / served.digest
    return kept if (kept / RECORD).exists() else last


def _kept(home: Path) -> Path:
    return home / "server" / "scores"
