"""Serving a release: the settings of the server, and the calls that assets and commands make."""

import json
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from khmer_assets.base_model.bring_in import folder_or_name
from khmer_assets.foundation.settings import PositiveFloat, PositiveInt, Settings
from khmer_assets.server.client import ask
from khmer_assets.server.gateway_settings import GatewaySettings
from khmer_assets.server.state import EngineValue, Say
from resources.model_server import ModelServer
from resources.tracking import mark_served

ADAPTERS_A_STEP = 4  # that vLLM computes together; requests for more of them wait for each other
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as the largest


def _is_address(host: str) -> str:
    ip_address(host)
    return host


class Deployment(Settings):
    """`host`, `port`: where the gateway listens. Beyond this machine (`0.0.0.0` is all its addresses) it must have a
    certificate, or stand `behind_proxy`, which has one. `question` is what `make run` asks the served model.
    `replicas`: engines behind the gateway.

    `max_model_length`: tokens, prompt and answer together. `replace`: a new release starts `beside` the old one, or
    `after` it, on a GPU with no room for both. `drain_seconds`: how long running answers may take to end on the old
    release. `engine`: the engine's own settings (vLLM's or, for a GGUF file, those of xllamacpp's `CommonParams`),
    where `serving_tuning` shall not choose. `embedder`: the sentence-transformers model that makes embeddings, a hub's
    name or a folder that begins with ./, / or ~.
    """

    host: Annotated[str, AfterValidator(_is_address)] = "127.0.0.1"
    behind_proxy: bool = False
    port: Annotated[int, Field(ge=1024, le=65535)] = 8000
    max_model_length: PositiveInt
    question: str
    replicas: Annotated[int, Field(ge=1, le=64)] = 1
    replace: Literal["beside", "after"] = "beside"
    drain_seconds: PositiveFloat = 300
    engine: dict[str, EngineValue] = {}
    embedder: Annotated[str, BeforeValidator(folder_or_name)] | None = None
    gateway: GatewaySettings = GatewaySettings()

    @model_validator(mode="after")
    def _keys_travel_encrypted(self) -> "Deployment":
        secure = self.gateway.tls_certificate is not None or self.behind_proxy
        if not secure and not ip_address(self.host).is_loopback:
            raise ValueError(
                f"at the host {self.host} keys and texts would travel in the clear; set gateway.tls_certificate and "
                "gateway.tls_key, or behind_proxy: true where a proxy before it speaks https"
            )
        return self


def model_server(deployment: Deployment, adapter_ranks: list[int], state: Path) -> ModelServer:
    """The model server of the recipe, with its state in the folder `state` and room for adapters of these ranks."""
    read = Deployment.model_fields.keys() - {"behind_proxy", "max_model_length", "question"}
    # without nulls, which Dagster's configuration does not take in a map
    settings = deployment.model_dump(mode="json", include=read, exclude_none=True)
    if adapter_ranks:
        rank = min(r for r in RANKS if r >= max(adapter_ranks))
        room = {"enable_lora": True, "max_loras": ADAPTERS_A_STEP, "max_lora_rank": rank}
        settings["engine"] = room | settings["engine"]
    return ModelServer(home=str(state), **settings)


def deploy(server: ModelServer, release: Path, max_model_length: int, say: Say = print) -> float:
    """Serve a version of `release`; return the seconds until it answered. Raises `ModelServerError`."""
    base = json.loads((release / "release.json").read_text())["base"]
    return server.deploy(release / "model", release.name, max_model_length, base, say)


def load_adapter(server: ModelServer, release: Path, say: Say = print) -> float:
    """Serve a version of `adapter_release`; return the seconds that it took. Raises `ModelServerError`."""
    record = json.loads((release / "release.json").read_text())
    return server.load_adapter(release / "adapter", record["name"], release.name, record["base"], say)


def registered_answer(server: ModelServer, name: str, files: Path, question: str, max_tokens: int) -> str:
    """What is served under `name` answers the question; before, it is marked as served in the model registry.

    `files` is the folder of a release that holds them. Raises `ModelServerError`.
    """
    figures = json.loads((files.parent / "release.json").read_text())["figures"]
    mark_served(Path(server.home), name, files.parent.name, files, figures)
    return ask(question, server.base_url, server.api_key(), model=name, max_tokens=max_tokens)


def served_endpoint(server: ModelServer, digest: str, names: tuple[str, ...]) -> Path:
    """A folder with `endpoint.json`: where, and under which names, the model of this digest answers."""
    # of its own, for the run and the sensor may deploy the same release at once
    folder = Path(tempfile.mkdtemp(dir=Path(server.home) / "server", prefix="endpoint-"))
    endpoint = {"address": server.base_url, "digest": digest, "models": list(names)}
    (folder / "endpoint.json").write_text(json.dumps(endpoint, indent=1))
    return folder
