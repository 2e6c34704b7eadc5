"""What all requests share: the served release, the keys and what they have left, the engines' load, the audit log.

What belongs here: what is read again when `server.json` has changed, and who may ask for what. What does not: HTTP
(`routes.py`), and a request on its way (`answer.py`).
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from khmer_assets.foundation.files import file_version
from khmer_assets.server.audit_log import AuditLog
from khmer_assets.server.balancing import Balance
from khmer_assets.server.connections import Connections
from khmer_assets.server.embedder import Embedder
from khmer_assets.server.engine_kinds import AskedKind, EngineKind, kind_of
from khmer_assets.server.gateway_settings import GatewaySettings
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.key_usage import KeyUsage, seconds_to_next_month
from khmer_assets.server.keys import OWNER, Key, KeyFile, engine_key
from khmer_assets.server.metrics import Metrics
from khmer_assets.server.rate_limits import Allowance, Allowances
from khmer_assets.server.refusals import Refused
from khmer_assets.server.request_log import log
from khmer_assets.server.requests import Body, Embeddings
from khmer_assets.server.routing import Conversations, router_of
from khmer_assets.server.state import AUTO_NAME, EMBEDDER_NAME, ModelServerError, ServerState
from khmer_assets.server.stronger import Stronger
from khmer_assets.server.structure import require_within

LOOK_SECONDS = 0.25


class FrontDoor:
    """The gateway but for HTTP. Its state lies in `home`, and `server.json` there says what is served."""

    settings: GatewaySettings
    audit: AuditLog
    kind: EngineKind | None  # of the release's engines; None without a release

    def __init__(self, home: Path):
        self.folder = home / "server"
        self.audit_folder = home / "audit"
        self.keys = KeyFile(self.folder)
        self.usage = KeyUsage(self.folder)
        self.allowances = Allowances()
        self.balance = Balance()
        self.embedding = Balance()  # of the embedder
        self.answering = 0  # requests that were admitted and have not ended: with an engine, or waiting for one
        self.metrics = Metrics()
        self.conversations = Conversations()
        self.stronger = Stronger()
        self._seen: tuple[int, int] | None = None
        self.refresh()
        self.connections = Connections(engine_key(self.folder))

    def refresh(self) -> None:
        """Read `server.json` again if it has changed."""
        seen = file_version(self.folder / "server.json")
        if seen == self._seen:
            return
        first, self._seen = self._seen is None, seen
        try:
            self.state = ServerState.read(self.folder)
        except ModelServerError as error:
            if first:
                raise
            log.error(json.dumps({"error": str(error)}))  # what is served goes on
            return
        self.names = self.state.names()
        self.router, self.no_router = router_of(self.state, self.folder)
        if self.router is not None:
            self.names[AUTO_NAME] = None
        release = self.state.release
        self.kind = kind_of(kept_model(self.folder, release.digest), release.engine) if release is not None else None
        self.balance.follow(self.state.ports)
        self.embedding.follow((self.state.embedder.port,) if self.state.embedder else ())
        self.settings = GatewaySettings.model_validate(self.state.gateway)
        self.audit = AuditLog(self.audit_folder, self.settings.redact, self.settings.retention_days)
        self.allowances.follow(self.settings.tiers)
        versions = (release, self.state.former, *self.state.adapters)
        stronger = self.state.router and self.state.router.stronger
        models = [
            EMBEDDER_NAME,
            stronger.name if stronger else "",
            *(version.names[1] for version in versions if version is not None),
        ]
        self.metrics.follow(release.digest if release is not None else None, models, (*self.settings.tiers, OWNER))

    def models(self, allowance: Allowance | None) -> list[dict[str, Any]]:
        """The names that a key may use, as /v1/models shows them.

        `root` is the digest of what answers, `parent` that of the model it was trained on.
        """
        if (release := self.state.release) is None:
            return []
        told: dict[str, dict[str, Any]] = {
            name: {
                "root": adapter.digest if adapter else release.digest,
                "parent": release.digest if adapter else None,
                "max_model_len": release.max_model_length,
            }
            for name, adapter in self.names.items()
        }
        if self.state.embedder:
            told[EMBEDDER_NAME] = {"root": self.state.embedder.model, "parent": None, "max_model_len": None}
        common = {"object": "model", "created": 0, "owned_by": "khmer-llm-factory"}
        may_use = allowance.may_use if allowance else lambda _: True
        return [{"id": name, **common, **fields} for name, fields in told.items() if may_use(name)]

    def key_of(self, authorization: str) -> Key:
        """The key in a request's header `Authorization`, perhaps a revoked one. Raises `Refused` (401) for no key."""
        scheme, _, text = authorization.partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise Refused(401, "no API key: send the header `Authorization: Bearer KEY`", code="invalid_api_key")
        key = self.keys.find(text.strip())
        if key is None:
            raise Refused(401, "this API key is unknown", code="invalid_api_key")
        return key

    def allowance_of(self, key: Key) -> Allowance | None:
        """What the key has left; None for the owner's, which has no limits. Raises `Refused` (403) without its tier."""
        return None if key.id == OWNER else self.allowances.of(key.id, key.tier)

    def check_model(self, name: str, allowance: Allowance | None) -> None:
        """Raise `Refused` for a model that is not served (404), or that the key may not use (403)."""
        if name not in self.names and not (name == EMBEDDER_NAME and self.state.embedder):
            if name == AUTO_NAME:
                raise Refused(404, self.no_router, code="model_not_found", parameter="model")
            mine = ", ".join(model["id"] for model in self.models(allowance))
            message = f"there is no model {name!r}; served are {mine}"
            raise Refused(404, message, code="model_not_found", parameter="model")
        if allowance is not None and not allowance.may_use(name):
            raise Refused(403, f"this key may not use {name}", code="model_not_allowed", parameter="model")

    def admit(self, body: Body, key: Key, allowance: Allowance | None) -> None:
        """Count a request. Raises `Refused` for a model or a wish that cannot be served, and for what is used up."""
        if isinstance(body, Embeddings) and self.state.embedder is None:
            told = "no embedding model is served; name one as serving.embedder in the recipe, and `make run`"
            raise Refused(404, told, code="model_not_found", parameter="model")
        self.check_model(body.model, allowance)
        if isinstance(body, Embeddings) and body.model != EMBEDDER_NAME:
            told = f"{body.model} makes no embeddings; ask {EMBEDDER_NAME} for them"
            raise Refused(404, told, code="model_not_found", parameter="model")
        self.kind_for(body.model).check(body.for_engine())  # refused before it counts
        if allowance is not None:
            require_within(body.schemas(), allowance.tier)
        if self.answering >= self.settings.max_requests:
            raise Refused(503, "too many requests at the moment", retry_after=1)
        if key.monthly_tokens is not None and self.usage.month(key.id) >= key.monthly_tokens:
            told = f"this key has used its {key.monthly_tokens:,} tokens of this month"
            raise Refused(429, told, code="insufficient_quota", retry_after=seconds_to_next_month())
        if allowance is not None:
            allowance.admit()
        self.answering += 1

    def charge(self, key: str, prompt_tokens: int, answer_tokens: int) -> None:
        """Note what an answer to this key has used, for months and days."""
        try:
            self.usage.add(key, prompt_tokens, answer_tokens)
        except OSError as error:  # the answer counts more
            log.error(json.dumps({"error": str(error)}))

    def kind_for(self, model: str) -> AskedKind:
        """What differs between that which answers under this name and others."""
        assert self.kind is not None, "a release has the names"
        return Embedder() if model == EMBEDDER_NAME else self.kind

    def leave_alone(self, port: int) -> None:
        """Give an engine no requests until it says that it is well."""
        if self._balance_of(port).rest(port):
            log.warning(json.dumps({"engine": port, "state": "not well"}))

    def _balance_of(self, port: int) -> Balance:
        return self.embedding if port in self.embedding.ports else self.balance

    async def look(self) -> None:
        """Look for all requests that wait: for another `server.json`, and for engines that are well again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.refresh()
                rested = [*self.balance.rested(), *self.embedding.rested()]
                healthy = await asyncio.gather(*map(self.connections.healthy, rested))
                for port, well in zip(rested, healthy, strict=True):
                    if well:
                        self._balance_of(port).wake(port)
                        log.warning(json.dumps({"engine": port, "state": "well again"}))
            except Exception as error:  # of one look, perhaps at a file that is just being mended
                log.error(json.dumps({"error": repr(error)}), exc_info=error)
