"""What is served, and the file that says so to every process: `server.json`."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

MODEL_NAME = "khmer"

EngineValue = bool | int | float | str
Say = Callable[[str], None]


class ModelServerError(Exception):
    """A model that is not served; the message says why and what to do."""


class ModelVersion(BaseModel):
    """A model version and how its engine runs it: `max_model_length` in tokens, `engine` the engine's own settings.

    `base` is the digest of the model that adapters must have been trained on.
    """

    model_config = ConfigDict(frozen=True)

    digest: str
    max_model_length: int
    engine: dict[str, Any] = {}
    base: str = ""

    @property
    def names(self) -> tuple[str, str]:
        """The names under which requests may choose the model: a constant one, and one that tells its version."""
        return MODEL_NAME, f"{MODEL_NAME}-{self.digest[:12]}"

    @property
    def takes_adapters(self) -> bool:
        """Whether its engines are started with room for adapters."""
        return bool(self.engine.get("enable_lora"))


class AdapterVersion(BaseModel):
    """A version of a LoRA adapter; `base` is the digest of the model that it was trained on."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    base: str

    @property
    def names(self) -> tuple[str, str]:
        """As of a release. Engines know the second alone: weights that are others never have the same name."""
        return f"{MODEL_NAME}-{self.name}", f"{MODEL_NAME}-{self.name}-{self.digest[:12]}"


class ServerState(BaseModel):
    """What is served where. The gateway and the supervisor follow the file; `ModelServer` alone writes it.

    `ports`: one an engine. `former`: what a rollback serves. `rolled_back`: the digest that one has replaced.
    `adapters`: of the release and of the former one. `retired`: digests of adapters that were taken away on purpose.
    `gateway`: settings that only the gateway understands. `stopped`: ended on purpose.
    """

    model_config = ConfigDict(frozen=True)

    release: ModelVersion | None = None
    ports: tuple[int, ...] = ()
    former: ModelVersion | None = None
    rolled_back: str | None = None
    adapters: tuple[AdapterVersion, ...] = ()
    retired: tuple[str, ...] = ()
    gateway: dict[str, Any] = {}
    stopped: bool = False

    @classmethod
    def read(cls, folder: Path) -> "ServerState":
        """The state in `folder`; an empty one when there is none, or one of an earlier version of this program."""
        try:
            return cls.model_validate_json((folder / "server.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return cls()

    def adapters_of(self, release: ModelVersion) -> tuple[AdapterVersion, ...]:
        """Those that were trained on what the release was made from, if it takes any."""
        return tuple(a for a in self.adapters if a.base == release.base) if release.takes_adapters else ()

    def names(self) -> dict[str, AdapterVersion | None]:
        """The names that requests may choose, and the adapter behind each; None stands for the release itself."""
        if self.release is None:
            return {}
        chosen: dict[str, AdapterVersion | None] = dict.fromkeys(self.release.names)
        return chosen | {name: adapter for adapter in self.adapters_of(self.release) for name in adapter.names}

    def write(self, folder: Path) -> None:
        """Replace the file in one step."""
        with state_lock(folder):
            aside = folder / "server.aside"
            aside.write_text(self.model_dump_json(indent=1))
            os.replace(aside, folder / "server.json")


@contextmanager
def state_lock(folder: Path) -> Iterator[None]:
    """Held for moments: while the state changes, and while the supervisor starts what the state names."""
    with (folder / "state.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
