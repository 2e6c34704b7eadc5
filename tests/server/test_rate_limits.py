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


def test_an_edit_of_a_tier_changes_the_limits_of_its_keys_and_leaves_their_counts():
    allowances = Allowances()
    allowances.follow({"small": Tier(requests_a_minute=3, streams=2), "large": Tier()})
    sokha = allowances.of("sokha", "small")
    sokha.admit()
    sokha.admit()
    # the other tier gets the limits that this one had: they are not this key's any more
    allowances.follow({"small": Tier(requests_a_minute=4, streams=3), "large": Tier(requests_a_minute=3, streams=2)})
    assert allowances.of("sokha", "small") is sokha
    sokha.admit()
    with pytest.raises(Refused, match="3 answers at a time"):
        sokha.admit()
    sokha.release(tokens=0)
    sokha.admit()
    sokha.release(tokens=0)
    with pytest.raises(Refused, match="4 requests"):
        sokha.admit()
    assert allowances.of("sokha", "large") is sokha  # a key keeps its counts in another tier


def test_a_key_whose_tier_is_gone_is_told_and_finds_its_counts_when_it_is_back():
    allowances = Allowances()
    allowances.follow({"small": Tier(requests_a_minute=1)})
    allowances.of("sokha", "small").admit()
    allowances.follow({"large": Tier()})
    with pytest.raises(Refused, match="'small', is no longer in the recipe"):
        allowances.of("sokha", "small")
    allowances.follow({"small": Tier(requests_a_minute=1)})
    with pytest.raises(Refused, match="1 requests"):
        allowances.of("sokha", "small").admit()


def test_headers_tell_what_is_left_and_when_all_of_it_is_back():
    allowance = Allowance(Tier(requests_a_minute=4, tokens_a_minute=600))
    allowance.admit()
    allowance.release(tokens=750)
    headers = allowance.headers()
    assert headers["x-ratelimit-limit-requests"] == "4" and headers["x-ratelimit-limit-tokens"] == "600"
    assert headers["x-ratelimit-remaining-requests"] == "3" and headers["x-ratelimit-remaining-tokens"] == "0"
    assert 14 < float(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 15
    assert 74 < float(headers["x-ratelimit-reset-tokens"].removesuffix("s")) <= 75
