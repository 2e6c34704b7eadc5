"""The limits of a tier: what a minute holds, what is owed, and what a changed recipe leaves of it."""

import pytest

from khmer_assets.server.rate_limits import Allowance, Allowances, Bucket, Tier
from khmer_assets.server.refusals import Refused


def test_a_bucket_owes_what_was_taken_too_much():
    bucket = Bucket(60)
    assert bucket.wait() == 0
    bucket.take(90)
    assert 30 < bucket.wait(1) <= 31


def test_tokens_are_counted_when_the_answer_has_ended():
    allowance = Allowance(Tier(requests_a_minute=10, tokens_a_minute=100, streams=2))
    allowance.admit()
    allowance.release(tokens=200)
    with pytest.raises(Refused, match="100 tokens a minute") as refused:
        allowance.admit()
    assert 55 <= int(refused.value.headers["Retry-After"]) <= 61


def test_a_key_keeps_what_it_had_left_until_its_tier_changes():
    allowances = Allowances()
    allowances.follow({"standard": Tier(streams=1)})
    allowances.of("sokha", "standard").admit()
    allowances.follow({"standard": Tier(streams=1), "large": Tier(streams=9)})
    with pytest.raises(Refused, match="1 answers at a time"):
        allowances.of("sokha", "standard").admit()
    allowances.follow({"standard": Tier(streams=2)})
    allowances.of("sokha", "standard").admit()
    with pytest.raises(Refused, match="'large', is no longer in the recipe"):
        allowances.of("dara", "large")
