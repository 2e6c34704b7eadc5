"""API keys: those of users, of which `keys.json` holds hashes, this machine's owner's, and the engines'.

What belongs here: whose a key is. What does not: how much its user may ask for (`rate_limits.py`).
"""

import fcntl
import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from khmer_assets.foundation.files import file_version, write_whole
from khmer_assets.server.state import ModelServerError

PREFIX = "khmer"
OWNER = "owner"  # the id of this machine's own key, `<home>/server/api_key`


class Key(BaseModel):
    """One key. The secret is 256 random bits, so a plain SHA-256 of it is safe to keep.

    `expires`: from when on it is worth nothing. `monthly_tokens`: prompts and answers of a calendar month (UTC).
    `former_sha256`: of the text before the last rotation, which counts until `former_until`.
    """

    id: str
    name: str
    tier: str
    sha256: str
    created: datetime
    revoked: datetime | None = None
    expires: datetime | None = None
    monthly_tokens: int | None = None
    former_sha256: str | None = None
    former_until: datetime | None = None

    def has_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= datetime.now(UTC)

    def is_written(self, text: str) -> bool:
        """Whether this is its text, or the one before that still counts."""
        digest = _hash(text)
        if hmac.compare_digest(digest, self.sha256):
            return True
        still = self.former_until is not None and datetime.now(UTC) < self.former_until
        return still and hmac.compare_digest(digest, self.former_sha256 or "")


class Unchanged:
    """Stands for a setting of a key that a change leaves as it is."""


UNCHANGED = Unchanged()


KEYS = TypeAdapter(list[Key])


class KeyFile:
    """The keys in `<folder>/keys.json`, read again when the file has changed, and the owner's in `api_key`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder / "keys.json"
        self._seen: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}

    def create(
        self, name: str, tier: str, expires: datetime | None = None, monthly_tokens: int | None = None
    ) -> tuple[Key, str]:
        """Add a key; return it and the text that its user sends, which is kept nowhere."""
        with self._changing() as keys:
            identity = secrets.token_hex(4)
            text = _text(identity)
            key = Key(id=identity, name=name, tier=tier, sha256=_hash(text), created=datetime.now(UTC))
            key.expires, key.monthly_tokens = expires, monthly_tokens
            keys.append(key)
        return key, text

    def change(
        self,
        identity: str,
        tier: str | None = None,
        expires: datetime | Unchanged | None = UNCHANGED,
        monthly_tokens: int | Unchanged | None = UNCHANGED,
    ) -> Key:
        """Another tier, end or budget from now on; None for none of the last two. Raises `LookupError`."""
        with self._changing() as keys:
            key = _one(keys, identity)
            key.tier = tier or key.tier
            key.expires = key.expires if isinstance(expires, Unchanged) else expires
            key.monthly_tokens = key.monthly_tokens if isinstance(monthly_tokens, Unchanged) else monthly_tokens
        return key

    def rotate(self, identity: str, hours: float) -> tuple[Key, str]:
        """Another text for a key; the one until now counts for so many hours more. Raises `LookupError`."""
        with self._changing() as keys:
            key = _one(keys, identity)
            text = _text(identity)
            key.former_sha256, key.former_until = key.sha256, datetime.now(UTC) + timedelta(hours=hours)
            key.sha256 = _hash(text)
        return key, text

    def all(self) -> list[Key]:
        """All keys, the revoked ones too. Raises `ModelServerError` for a file that holds none."""
        try:
            return KEYS.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return []
        except (ValidationError, OSError) as error:
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            remedy = "bring it back from a copy, or move it away and create the keys anew"
            raise ModelServerError(f"{self._file}: expected API keys, but cannot be read ({what}); {remedy}") from None

    def revoke(self, identity: str) -> Key:
        """End a key from now on. Raises `LookupError` when there is none of this id."""
        with self._changing() as keys:
            key = _one(keys, identity)
            key.revoked = key.revoked or datetime.now(UTC)
        return key

    def find(self, text: str) -> Key | None:
        """The key that a user has sent, perhaps a revoked one; None for an unknown one."""
        self._refresh()
        prefix, _, rest = text.partition("-")
        identity = rest.partition("-")[0] if prefix == PREFIX else OWNER
        key = self._keys.get(identity)
        return key if key is not None and key.is_written(text) else None

    def _refresh(self) -> None:
        seen = (*file_version(self._file), *file_version(self.folder / "api_key"))
        if seen != self._seen:
            self._keys = {key.id: key for key in self.all()}
            if (owner := self.folder / "api_key").exists():
                digest = _hash(owner.read_text().strip())
                self._keys[OWNER] = Key(id=OWNER, name=OWNER, tier=OWNER, sha256=digest, created=datetime.now(UTC))
            self._seen = seen  # not before: a file that cannot be read lets nobody in, until it is mended

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "keys.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = self.all()
            yield keys
            write_whole(self._file, KEYS.dump_json(keys, indent=1), 0o600)


def _one(keys: list[Key], identity: str) -> Key:
    for key in keys:
        if key.id == identity:
            return key
    raise LookupError(f"no key has the id {identity!r}; `keys list` shows all")


def _text(identity: str) -> str:
    return f"{PREFIX}-{identity}-{secrets.token_urlsafe(32)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def secret(file: Path) -> str:
    """The secret in `file`, readable by its owner alone; made at the first call."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, aside = tempfile.mkstemp(dir=file.parent)  # mode 0600
        with os.fdopen(descriptor, "w") as opened:
            opened.write(secrets.token_urlsafe(32))
        with suppress(FileExistsError):  # another process was faster, and its secret counts
            os.link(aside, file)
        os.unlink(aside)
    return file.read_text().strip()


def engine_key(folder: Path) -> str:
    """The key that the engines want. Only the gateway uses it; users have keys of their own."""
    return secret(folder / "engine_key")
