"""The model server as Dagster sees it: a new release is served beside the old one and takes over, or is turned away.

What belongs here: the order of a deployment and of a rollback. What does not: the processes (`khmer_assets/server/`),
which model deserves to be served (`khmer_assets/release/`).
"""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
from pydantic import Field

from khmer_assets.foundation.files import write_whole
from khmer_assets.foundation.processes import PortInUse, free_ports, stop_all
from khmer_assets.server.embedder import version_of
from khmer_assets.server.engines import Engine, known_engines, require_engine
from khmer_assets.server.gateway_process import GatewayProcess
from khmer_assets.server.gateway_settings import GatewaySettings, descriptors_missing, tls_context
from khmer_assets.server.kept_models import forget_models, keep_model, kept_model
from khmer_assets.server.keys import secret
from khmer_assets.server.state import (
    MODEL_NAME,
    AdapterVersion,
    ModelServerError,
    ModelVersion,
    Say,
    ServerState,
    deployment_lock,
    state_lock,
)

__all__ = ["MODEL_NAME", "ModelServer", "ModelServerError", "ServerStatus"]

PASSING_SECONDS = 1.0  # in which a request that the gateway has just passed on reaches its engine


@dataclass(frozen=True)
class ServerStatus:
    """Whether the gateway runs, and the names of the models that it offers (none while it starts)."""

    running: bool
    models: tuple[str, ...]


class ModelServer(dg.ConfigurableResource[Any]):
    """Engines behind the gateway on `host`:`port`. Its state lies in `<home>/server`, for every process to find.

    `replicas`: engines at a time. `replace`: a new release starts `beside` the old one, or `after` it has stopped,
    where there is no memory for both. `drain_seconds`: how long running answers may still take on the old one.
    `engine`: the engine's own settings by name. `gateway`: `khmer_assets/server/gateway_settings.py`.
    `embedder`: a sentence-transformers model (a folder or a hub's name), or "".
    """

    home: str
    port: int
    host: str = "127.0.0.1"
    replicas: int = 1
    replace: str = "beside"
    drain_seconds: float = 300
    engine: dict[str, Any] = Field(default_factory=dict)
    embedder: str = ""
    gateway: dict[str, Any] = Field(default_factory=dict)

    @property
    def address(self) -> str:
        """Where the gateway listens: its chat page, /health and /metrics."""
        return self._gateway(self.gateway).address

    @property
    def base_url(self) -> str:
        """The address of the OpenAI-compatible interface."""
        return f"{self.address}/v1"

    @property
    def key_file(self) -> Path:
        """The file that holds the API key of this machine's owner, whom no limits bind."""
        return self._gateway(self.gateway).key_file

    def api_key(self) -> str:
        """The owner's API key; made at the first call."""
        return secret(self.key_file)

    def status(self) -> ServerStatus:
        """Whether the server runs and what it serves."""
        gateway = self._gateway(self.gateway)
        if not gateway.process.is_running():
            return ServerStatus(False, ())
        with suppress(httpx.HTTPError):
            response = gateway.http().get("/v1/models")
            if response.status_code == 200:
                return ServerStatus(True, tuple(model["id"] for model in response.json()["data"]))
        return ServerStatus(True, ())

    def deploy(self, model: Path, digest: str, max_model_length: int, base: str = "", say: Say = print) -> float:
        """Serve the model in the folder `model` as version `digest`; return the seconds until it answered.

        vLLM serves a transformers folder, llama.cpp one with a GGUF file.
        Nothing happens when this version is already served. When the new model fails, the former one goes on and
        `ModelServerError` tells why. `max_model_length` is in tokens, prompt and answer together. Adapters that were
        trained on the model of digest `base` are served with it.
        """
        with self._locked(say):
            self._check_settings(say)
            engine = {**self._tuned(model), **self.engine}
            release = ModelVersion(digest=digest, max_model_length=max_model_length, engine=engine, base=base)
            return self._serve(release, model, say)

    def keep_tuned(self, engine: dict[str, Any]) -> None:
        """Keep vLLM's settings for the next deployments; those of the recipe go before them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._folder / "tuned.json", json.dumps(engine, indent=1))

    def _tuned(self, model: Path) -> dict[str, Any]:
        file = self._folder / "tuned.json"
        served_by_vllm = (model / "config.json").is_file()  # llama.cpp has other settings
        return dict(json.loads(file.read_text())) if served_by_vllm and file.exists() else {}

    def rollback(self, say: Say = print) -> str:
        """Serve the release before the present one; return its digest. It stays, also when `make run` is repeated."""
        with self._locked(say):
            state = self._state
            if state.former is None or state.release is None:
                raise ModelServerError("there is no former release to go back to; the one that is served is the first")
            self._serve(state.former, kept_model(self._folder, state.former.digest), say, state.release.digest)
            return state.former.digest

    def serves(self) -> bool:
        """Whether a release is served, or will be as soon as its engines have started."""
        state = self._state
        return state.release is not None and not state.stopped

    def rolled_back(self) -> str | None:
        """The digest that a rollback has replaced, until another release is deployed."""
        return self._state.rolled_back

    def load_adapter(self, folder: Path, name: str, digest: str, base: str, say: Say = print) -> float:
        """Serve the peft folder `folder` as version `digest` of the adapter `name`; return the seconds that it took.

        Engines go on meanwhile. The version before it is retired. When the new one fails, everything stays as it was
        and `ModelServerError` tells why. `base` is the digest of the model that it was trained on.
        """
        adapter = AdapterVersion(name=name, digest=digest, base=base)
        with self._locked(say):
            state = self._state
            if state.release is None or not self.serves():
                raise ModelServerError("no release is served that could take the adapter; `make run` serves one")
            if base != state.release.base:
                raise ModelServerError(
                    f"the adapter {name} was trained on the model {base}, and the served release was made from "
                    f"{state.release.base or 'one that is not known'}; materialize both for the same merged_model"
                )
            if not state.release.takes_adapters:
                raise ModelServerError(
                    "the release was served before the recipe had adapters, so its engines have no room for any; "
                    "materialize served_model again"
                )
            if not (folder / "adapter_model.safetensors").is_file():
                raise ModelServerError(f"{folder}: expected a peft folder, found no adapter_model.safetensors in it")
            forget_models(self._folder, state)
            keep_model(self._folder, folder, digest)
            engines = [Engine(self._folder, port) for port in state.ports]
            started = time.monotonic()
            try:
                for engine in engines:
                    engine.wait_until_healthy(say)
                    engine.load(adapter)
                    engine.check_answers(adapter.names[1])
            except ModelServerError:
                for engine in engines:
                    if adapter not in state.adapters:
                        engine.unload(adapter)
                raise
            former = [a for a in state.adapters if (a.name, a.base) == (name, base) and a != adapter]
            others = (a for a in state.adapters if a not in former and a != adapter)
            retired = tuple(d for d in state.retired if d != digest)
            state.model_copy(update={"adapters": (*others, adapter), "retired": retired}).write(self._folder)
            self._gateway(state.gateway).wait_until_serving(state.release)
            seconds = time.monotonic() - started
            say(f"{adapter.names[1]} is served, after {seconds:.2f} s")
            self._unload(former)
            return seconds

    def retire_adapter(self, name: str, say: Say = print) -> None:
        """Serve the adapter `name` no longer, until it is materialized again; running answers end on it."""
        with self._locked(say):
            state = self._state
            gone = [adapter for adapter in state.adapters if adapter.name == name]
            if not gone:
                served = ", ".join(sorted({adapter.name for adapter in state.adapters})) or "none"
                raise ModelServerError(f"there is no adapter {name!r}; served are: {served}")
            others = tuple(adapter for adapter in state.adapters if adapter not in gone)
            retired = tuple(dict.fromkeys([*state.retired, *(adapter.digest for adapter in gone)]))
            state.model_copy(update={"adapters": others, "retired": retired}).write(self._folder)
            self._unload(gone)

    def adapters(self) -> tuple[AdapterVersion, ...]:
        """The adapters that are served with the present release."""
        state = self._state
        return state.adapters_of(state.release) if state.release is not None else ()

    def was_retired(self, digest: str) -> bool:
        """Whether this version of an adapter was taken away on purpose."""
        return digest in self._state.retired

    def resume(self, say: Say = print) -> None:
        """Serve again what was served last, after a stop or a restart of the machine."""
        with self._locked(say):
            self._check_settings(say)
            self._resume(self._with_settings(self._state), say)

    def keep_serving(self) -> bool:
        """Start what should run and does not; True if something was started. Does not wait until it answers.

        Also while a deployment runs: what it leaves to the supervisor would else be nobody's until it has ended.
        """
        state = self._state
        return state.release is not None and self._gateway(state.gateway).start()

    def stop(self) -> bool:
        """End the gateway and the engines; True if one ran."""
        with deployment_lock(self._folder, print):
            with suppress(ModelServerError):  # a state that cannot be read must not keep engines running
                if self._state.release is not None:
                    self._state.model_copy(update={"stopped": True}).write(self._folder)
            gateway, engines = stop_all(self._folder, "gateway*"), stop_all(self._folder, "engine-*")
            stop_all(self._folder, "embedder-*")
            stop_all(self._folder / "tuning", "engine-*")  # of a search that was killed
            return gateway or engines

    @property
    def _folder(self) -> Path:
        return Path(self.home) / "server"

    @property
    def _state(self) -> ServerState:
        return ServerState.read(self._folder)

    def _gateway(self, settings: dict[str, Any]) -> GatewayProcess:
        return GatewayProcess(self._folder, self.host, self.port, bool(settings.get("tls_certificate")))

    def _check_settings(self, say: Say) -> None:
        """Raise `ModelServerError` for a certificate with which no gateway could start."""
        settings = GatewaySettings.model_validate(self.gateway)
        tls_context(settings)
        if missing := descriptors_missing(settings):
            say(missing)

    def _with_settings(self, state: ServerState) -> ServerState:
        """The state as the recipe wants its gateway, and running."""
        found = version_of(self.embedder, state, self.port)
        gateway = self.gateway or state.gateway
        return state.model_copy(update={"gateway": gateway, "embedder": found, "stopped": False})

    @contextmanager
    def _locked(self, say: Say) -> Iterator[None]:
        """One deployment at a time; one that was killed while it made room has not been."""
        with deployment_lock(self._folder, say):
            if (state := self._state).paused:
                state.unpaused().write(self._folder)
            yield

    def _serve(self, wanted: ModelVersion, model: Path, say: Say, rolled_back: str | None = None) -> float:
        started = time.monotonic()
        former = self._state
        if former.release == wanted and len(former.ports) == self.replicas:
            say(f"{wanted.names[1]} is the served release")
            return self._resume(self._with_settings(former), say)
        require_engine(model)
        gateway = self._gateway(self.gateway)
        if former.release is not None and not former.stopped:
            gateway.start()  # what is served is served while the new release starts
        else:
            gateway.require_port()
        self._end_engines(former.ports, say)  # what an interrupted deployment has left
        taken = (*former.ports, *([former.embedder.port] if former.embedder else []))
        engines = [Engine(self._folder, port) for port in self._engine_ports(taken)]
        goes = former.release if former.release != wanted else former.former
        bases = {release.base for release in (wanted, goes) if release is not None}
        state = ServerState(
            release=wanted,
            ports=tuple(engine.port for engine in engines),
            former=goes,
            rolled_back=rolled_back,
            adapters=tuple(adapter for adapter in former.adapters if adapter.base in bases),
            retired=former.retired,
            router=former.router,  # which waits for a release of its own base
            embedder=version_of(self.embedder, former, self.port, tuple(engine.port for engine in engines)),
            gateway=self.gateway,
        )
        try:
            keep_model(self._folder, model, wanted.digest)
            if self.replace == "after" and former.ports:
                say(f"stopping {former.release.names[1] if former.release else 'the old engines'} to make room")
                former.model_copy(update={"ports": (), "paused": former.ports}).write(self._folder)
                self._end_engines((), say)
            self._start(engines, state, say)
            state.write(self._folder)
            gateway.start()
            gateway.wait_until_serving(wanted)
        except (ModelServerError, OSError) as error:
            raise self._turned_away(error, engines, former, say) from None
        seconds = time.monotonic() - started
        say(f"{wanted.names[1]} is served, after {seconds:.0f} s")
        self._end_engines(state.ports, say)
        forget_models(self._folder, state)
        return seconds

    def _start(self, engines: list[Engine], state: ServerState, say: Say) -> None:
        """Start engines of the release that `state` names; they must answer under each of its names."""
        release = state.release
        assert release is not None, "a release is deployed"
        adapters = state.adapters_of(release)
        for engine in engines:
            engine.process.log.unlink(missing_ok=True)
            engine.start(release, adapters)
        for engine in engines:
            engine.wait_until_healthy(say)
            for name in (release.names[1], *(adapter.names[1] for adapter in adapters)):
                engine.check_answers(name)

    def _turned_away(self, error: Exception, engines: list[Engine], former: ServerState, say: Say) -> ModelServerError:
        """Stop engines that failed, and go on with what was served before; what to tell of it."""
        failed = self._folder / "engine.failed.log"
        with suppress(OSError), failed.open("wb") as kept:
            for engine in engines:
                if engine.process.log.exists():
                    kept.write(engine.process.log.read_bytes())
        message = f"{error}\nAll that the engine wrote is in {failed}"
        try:
            self._end_engines((*former.ports, *self._state.ports), say)  # room for the former ones
            former.model_copy(update={"stopped": False}).write(self._folder)
            self._end_engines(former.ports, say)
            if former.release is not None:
                self._resume(self._state, say)
                message += f"\nThe former model, {former.release.names[1]}, is served."
        except (ModelServerError, OSError) as second:
            message += f"\nThe former model does not start either: {second}"
        forget_models(self._folder, former)
        return ModelServerError(message)

    def _resume(self, state: ServerState, say: Say) -> float:
        """Let the supervisor start what `state` names; return the seconds until it answered, 0 if it did already."""
        release = state.release
        if release is None:
            raise ModelServerError("there is no release to serve yet; `make run` makes one")
        state.write(self._folder)
        started = time.monotonic()
        engines = [Engine(self._folder, port) for port in state.ports]
        waiting = not all(engine.answers_health() for engine in engines)
        gateway = self._gateway(state.gateway)
        gateway.start()
        if waiting:
            with state_lock(self._folder):  # the supervisor may be about to start them too
                for engine in engines:
                    engine.start(release, state.adapters_of(release))
            for engine in engines:
                engine.wait_until_healthy(say)
        gateway.wait_until_serving(release)
        return time.monotonic() - started if waiting else 0.0

    def _end_engines(self, keep: tuple[int, ...], say: Say) -> None:
        """Stop all engines but those of the ports `keep`, once their running answers are finished or out of time."""
        ending = [engine for engine in known_engines(self._folder) if engine.port not in keep]
        started = time.monotonic()
        gateway = self._gateway(self._state.gateway)
        while ending:
            running = gateway.running()  # also of one that has lost its supervisor
            if running is None and not gateway.process.is_running():
                break
            if running is not None and not any(running.get(str(engine.port)) for engine in ending):
                break
            if time.monotonic() - started > self.drain_seconds:
                say(f"answers still running after {self.drain_seconds:g} s are cut")
                break
            time.sleep(0.2)
        for engine in ending:
            engine.process.stop()

    def _unload(self, adapters: Iterable[AdapterVersion]) -> None:
        """Let engines forget adapters that get no new requests. Their files stay until the next change."""
        if adapters := list(adapters):
            time.sleep(PASSING_SECONDS)
        for adapter in adapters:
            for port in self._state.ports:
                Engine(self._folder, port).unload(adapter)

    def _engine_ports(self, taken: tuple[int, ...]) -> list[int]:
        try:
            return free_ports(self.port, self.replicas, taken)
        except PortInUse as error:
            raise ModelServerError(f"{error}; set serving.port") from None
