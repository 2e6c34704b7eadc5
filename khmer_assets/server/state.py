"""What is served, and the file that says so to every process: `server.json`."""

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from khmer_assets.foundation.files import write_whole

MODEL_NAME = "khmer"
EMBEDDER_NAME = f"{MODEL_NAME}-embedding"
AUTO_NAME = f"{MODEL_NAME}-auto"  # the model, or who else answers better

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


class EmbedderVersion(BaseModel):
    """The model that makes embeddings, a folder or a hub's name, and the port of its process."""

    model_config = ConfigDict(frozen=True)

    model: str
    port: int


class StrongerModel(BaseModel):
    """A model behind another server that speaks OpenAI's protocol, whom users are sent to who are not satisfied.

    `address` ends in /v1 with most servers; `key_variable` names the gateway's environment variable that holds the key.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    address: str
    model: str
    key_variable: str | None = None


class RouterVersion(BaseModel):
    """A version of the router; `base` is the digest of the model that it was trained with."""

    model_config = ConfigDict(frozen=True)

    digest: str
    base: str
    stronger: StrongerModel | None = None


class ServerState(BaseModel):
    """What is served where. The gateway follows the file; whoever holds the `deployment_lock` writes it.

    `ports`: one an engine. `paused`: of engines that a deployment has stopped to make room; they are the release's
    again when it is killed. `former`: what a rollback serves. `rolled_back`: the digest that one has replaced.
    `adapters`: of the release and of the former one. `retired`: digests of adapters that were taken away on purpose.
    `gateway`: settings that only the gateway understands. `stopped`: ended on purpose.
    """

    model_config = ConfigDict(frozen=True)

    release: ModelVersion | None = None
    ports: tuple[int, ...] = ()
    paused: tuple[int, ...] = ()
    former: ModelVersion | None = None
    rolled_back: str | None = None
    adapters: tuple[AdapterVersion, ...] = ()
    retired: tuple[str, ...] = ()
    embedder: EmbedderVersion | None = None
    router: RouterVersion | None = None
    gateway: dict[str, Any] = {}
    stopped: bool = False

    @classmethod
    def read(cls, folder: Path) -> "ServerState":
        """The state in `folder`; an empty one when there is none. Raises `ModelServerError` for one that is no state:
        taken as empty, what is served would be forgotten.
        """
        file = folder / "server.json"
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return cls()
        except (ValidationError, OSError) as error:
            remedy = "bring it back from a copy, or end the server, delete the file and deploy again"
            message = f"{file}: expected what is served, but it cannot be read; {remedy}\n{error}"
            raise ModelServerError(message) from None

    def unpaused(self) -> "ServerState":
        """As it was before a deployment that did not end made room."""
        return self.model_copy(update={"ports": self.paused, "paused": ()}) if self.paused else self

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
            write_whole(folder / "server.json", self.model_dump_json(indent=1))


@contextmanager
def state_lock(folder: Path) -> Iterator[None]:
    """Held for moments: while the state changes, and while what the state names is started."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "state.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def deployment_lock(folder: Path, say: Say | None = None) -> Iterator[bool]:
    """Held by one deployment at a time, also between processes: the sensor and a user may ask for the same one.

    True when it is held. With `say` it waits for another one to end, else there is False at once. A process that is
    killed gives it back: what it has left can then be mended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if say is None:
                yield False
                return
            say("waiting for another deployment to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True
