"""The settings of the front door, put together from those of its parts.

What belongs here: what no part obeys alone. What does not: a part's own settings, which stand in its module. No web
server is imported here: the recipe reads these settings.
"""

import resource
import ssl

from pydantic import model_validator

from khmer_assets.foundation.settings import FileBeside, Name, PositiveFloat, PositiveInt
from khmer_assets.server.audit_log import AuditSettings
from khmer_assets.server.balancing import Waiting
from khmer_assets.server.rate_limits import Tier
from khmer_assets.server.state import ModelServerError


class GatewaySettings(AuditSettings, Waiting):
    """The front door: what each tier of keys may use, and what it takes on of all of them together.

    `max_requests`: at a time, those that wait for an engine too. A body must be whole after `body_seconds`, an answer
    after `request_seconds`. `tls_certificate`, `tls_key`: PEM files; then the gateway speaks https. They are read again
    when they are renewed.
    """

    tiers: dict[Name, Tier] = {"standard": Tier()}
    max_requests: PositiveInt = 1000
    max_body_bytes: PositiveInt = 1_048_576
    body_seconds: PositiveFloat = 30
    request_seconds: PositiveFloat = 600

    tls_certificate: FileBeside | None = None
    tls_key: FileBeside | None = None

    @model_validator(mode="after")
    def _certificate_and_key(self) -> "GatewaySettings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        return self


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """What https is spoken with; None for http. Raises `ModelServerError` where the files are no pair."""
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.tls_certificate, settings.tls_key)
    except OSError as error:  # SSLError is one
        files = f"{settings.tls_certificate} and {settings.tls_key}"
        raise ModelServerError(f"{files}: expected a certificate and its key as PEM files: {error}") from None
    return context


DESCRIPTORS_A_REQUEST = 3  # the user's connection, the engine's, and the journal
OTHER_DESCRIPTORS = 200


def descriptors_missing(settings: GatewaySettings) -> str | None:
    """What to tell where the system does not let one process have as many requests as the settings do."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    enough = (hard - OTHER_DESCRIPTORS) // DESCRIPTORS_A_REQUEST
    if hard == resource.RLIM_INFINITY or settings.max_requests <= enough:
        return None
    return (
        f"a process may open {hard:,} files here (`ulimit -Hn`), which suffices for {max(0, enough):,} requests at a "
        f"time; raise it, or lower serving.gateway.max_requests ({settings.max_requests:,})"
    )
