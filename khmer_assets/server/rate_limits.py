"""How much each key may use in a minute: its tier, and what it has left, which is kept in memory."""

import time
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field

from khmer_assets.foundation.settings import PositiveInt
from khmer_assets.server.refusals import Refused
from khmer_assets.server.structure import SchemaLimits

MINUTE = 60.0


class Tier(SchemaLimits):
    """What a key may use: requests and tokens (prompt and answer) a minute, answers at a time, and which models.

    `models`: names as /v1/models shows them; `*` stands for any characters.
    """

    requests_a_minute: PositiveInt = 60
    tokens_a_minute: PositiveInt = 60_000
    streams: PositiveInt = 4
    models: Annotated[list[str], Field(min_length=1)] = ["*"]


class Bucket:
    """What was taken of an allowance of a minute, which is given back steadily. It may be more than the allowance."""

    def __init__(self, a_minute: float):
        self.a_minute = a_minute
        self._taken = 0.0
        self._at = time.monotonic()

    def taken(self) -> float:
        """What has not been given back yet."""
        now = time.monotonic()
        self._taken = max(0.0, self._taken - (now - self._at) * self.a_minute / MINUTE)
        self._at = now
        return self._taken

    def resize(self, a_minute: float) -> None:
        """Allow so much from now on; what was taken stays taken."""
        self.taken()
        self.a_minute = a_minute

    def wait(self, amount: float = 1) -> float:
        """Seconds until `amount` may be taken."""
        return max(0.0, (self.taken() + amount - self.a_minute) * MINUTE / self.a_minute)

    def take(self, amount: float) -> None:
        """Take it, whether or not it is there."""
        self._taken = self.taken() + amount

    def headers(self, of: str) -> dict[str, str]:
        """What is left, and the seconds until all of it is there again, in the headers that OpenAI sends."""
        taken = self.taken()
        return {
            f"x-ratelimit-limit-{of}": f"{self.a_minute:.0f}",
            f"x-ratelimit-remaining-{of}": f"{max(0, int(self.a_minute - taken))}",
            f"x-ratelimit-reset-{of}": f"{taken * MINUTE / self.a_minute:.3f}s",
        }


class Allowance:
    """What one key has left in this minute, and how many answers it is getting."""

    def __init__(self, tier: Tier):
        self.streams = 0
        self.requests = Bucket(tier.requests_a_minute)
        self.tokens = Bucket(tier.tokens_a_minute)
        self.follow(tier)

    def follow(self, tier: Tier) -> None:
        """Let these be the limits from now on; what the key has used and is getting still counts."""
        self.tier = tier
        self.requests.resize(tier.requests_a_minute)
        self.tokens.resize(tier.tokens_a_minute)

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

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*`: what the key may use, has left, and when all of it is there again."""
        return self.requests.headers("requests") | self.tokens.headers("tokens")


class Allowances:
    """What all keys have left."""

    def __init__(self) -> None:
        self._tiers: dict[str, Tier] = {}
        self._allowances: dict[str, Allowance] = {}  # by the key's id

    def follow(self, tiers: dict[str, Tier]) -> None:
        """Let these be the tiers from now on."""
        self._tiers = tiers

    def of(self, identity: str, tier: str) -> Allowance:
        """What the key of this id has left: its counts stay when its tier, or what that may use, is another.

        Raises `Refused` (403) when there is no such tier.
        """
        if (limits := self._tiers.get(tier)) is None:
            raise Refused(403, f"the tier of this key, {tier!r}, is no longer in the recipe (serving.gateway.tiers)")
        allowance = self._allowances.setdefault(identity, Allowance(limits))
        if allowance.tier is not limits:
            allowance.follow(limits)
        return allowance
