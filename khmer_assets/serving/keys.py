"""API keys of users, and how much each may use: `keys.json` holds hashes, the limits of a minute are in memory."""

import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from khmer_assets.recipe import Tier
from khmer_assets.serving.requests import Refused

PREFIX = "khmer"
OWNER = "owner"  # the id of this machine's own key, `<home>/server/api_key`
MINUTE = 60.0


class Key(BaseModel):
    """One key. The secret is 256 random bits, so a plain SHA-256 of it is safe to keep."""

    id: str
    name: str
    tier: str
    sha256: str
    created: datetime
    revoked: datetime | None = None


KEYS = TypeAdapter(list[Key])


class KeyFile:
    """The keys in `<folder>/keys.json`, read again when the file has changed, and the owner's in `api_key`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file = folder / "keys.json"
        self._seen: tuple[int, ...] | None = None
        self._keys: dict[str, Key] = {}

    def create(self, name: str, tier: str) -> tuple[Key, str]:
        """Add a key; return it and the text that its user sends, which is kept nowhere."""
        with self._changing() as keys:
            identity = secrets.token_hex(4)
            text = f"{PREFIX}-{identity}-{secrets.token_urlsafe(32)}"
            key = Key(id=identity, name=name, tier=tier, sha256=_hash(text), created=datetime.now(UTC))
            keys.append(key)
        return key, text

    def all(self) -> list[Key]:
        """All keys, the revoked ones too."""
        return KEYS.validate_json(self._file.read_bytes()) if self._file.exists() else []

    def revoke(self, identity: str) -> Key:
        """End a key from now on. Raises `LookupError` when there is none of this id."""
        with self._changing() as keys:
            for key in keys:
                if key.id == identity:
                    key.revoked = key.revoked or datetime.now(UTC)
                    return key
        raise LookupError(f"no key has the id {identity!r}; `keys list` shows all")

    def find(self, text: str) -> Key | None:
        """The key that a user has sent, unless it is unknown or revoked."""
        self._refresh()
        prefix, _, rest = text.partition("-")
        identity = rest.partition("-")[0] if prefix == PREFIX else OWNER
        key = self._keys.get(identity)
        if key is None or key.revoked or not hmac.compare_digest(_hash(text), key.sha256):
            return None
        return key

    def _refresh(self) -> None:
        seen = (*file_version(self._file), *file_version(self.folder / "api_key"))
        if seen != self._seen:
            self._seen = seen
            self._keys = {key.id: key for key in self.all()}
            if (owner := self.folder / "api_key").exists():
                digest = _hash(owner.read_text().strip())
                self._keys[OWNER] = Key(id=OWNER, name=OWNER, tier="", sha256=digest, created=datetime.now(UTC))

    @contextmanager
    def _changing(self) -> Iterator[list[Key]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "keys.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = self.all()
            yield keys
            aside = self._file.with_suffix(".aside")
            aside.touch(mode=0o600)
            aside.write_bytes(KEYS.dump_json(keys, indent=1))
            os.replace(aside, self._file)


class Bucket:
    """An allowance of a minute, refilled steadily. What is taken may exceed what is left: then it is owed."""

    def __init__(self, a_minute: float):
        self.a_minute = a_minute
        self._left = a_minute
        self._at = time.monotonic()

    def wait(self, amount: float = 1) -> float:
        """Seconds until `amount` may be taken."""
        now = time.monotonic()
        self._left = min(self.a_minute, self._left + (now - self._at) * self.a_minute / MINUTE)
        self._at = now
        return max(0.0, (amount - self._left) * MINUTE / self.a_minute)

    def take(self, amount: float) -> None:
        """Take it, whether or not it is there."""
        self._left -= amount


class Allowance:
    """What one key has left in this minute, and how many answers it is getting."""

    def __init__(self, tier: Tier):
        self.tier = tier
        self.streams = 0
        self.requests = Bucket(tier.requests_a_minute)
        self.tokens = Bucket(tier.tokens_a_minute)

    def admit(self) -> None:
        """Count one more answer. Raises `Refused` (429) with the seconds to wait when the key has used what it may."""
        wait = max(self.requests.wait(), self.tokens.wait())
        if self.streams >= self.tier.streams:
            raise Refused(429, f"this key may get {self.tier.streams} answers at a time", retry_after=1)
        if wait:
            tier = f"{self.tier.requests_a_minute} requests and {self.tier.tokens_a_minute} tokens a minute"
            raise Refused(429, f"this key may use {tier}; try again in {wait:.0f} s", retry_after=wait)
        self.requests.take(1)
        self.streams += 1

    def release(self, tokens: int) -> None:
        """Note the end of an answer that has used so many tokens."""
        self.streams -= 1
        self.tokens.take(tokens)

    def may_use(self, model: str) -> bool:
        """Whether the tier names the model."""
        return any(fnmatchcase(model, pattern) for pattern in self.tier.models)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def file_version(file: Path) -> tuple[int, int]:
    """What differs after a file has been replaced."""
    try:
        found = file.stat()
        return found.st_mtime_ns, found.st_ino
    except FileNotFoundError:
        return 0, 0
