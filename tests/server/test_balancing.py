"""Requests go to the engine with the least to do, wait when none runs, and leave alone what has failed."""

import asyncio
import time

import pytest

from khmer_assets.server import balancing
from khmer_assets.server.balancing import Balance
from khmer_assets.server.refusals import Refused


@pytest.fixture
def balance():
    balance = Balance()
    balance.follow((1, 2, 3))
    return balance


def chosen(balance, tried=(), wait_seconds=0.0, refresh=lambda: None) -> int:
    return asyncio.run(balance.engine(set(tried), wait_seconds, refresh))


def test_the_engine_with_the_least_to_do_is_chosen(balance):
    with balance.counted(1), balance.counted(2), balance.counted(1):
        assert chosen(balance) == 3
        with balance.counted(3), balance.counted(3):
            assert chosen(balance) == 2
    assert chosen(balance) == 1


def test_a_request_that_fails_is_no_longer_counted(balance):
    with pytest.raises(ConnectionError), balance.counted(1):
        raise ConnectionError
    assert not any(balance.running.values())


def test_an_engine_that_was_tried_is_tried_again_only_when_there_is_no_other(balance):
    assert chosen(balance, tried={1, 2}) == 3
    assert chosen(balance, tried={1, 2, 3}) == 1


def test_an_engine_that_failed_rests_for_a_moment_or_until_others_are_served(balance, monkeypatch):
    monkeypatch.setattr(balancing, "REST_SECONDS", 0.2)
    balance.rest(1)
    assert chosen(balance) == 2
    time.sleep(0.2)
    assert chosen(balance) == 1
    balance.rest(1)
    balance.follow((1, 2))
    assert chosen(balance) == 1


def test_when_all_rest_a_request_waits_for_the_first_that_may_be_tried(balance, monkeypatch):
    monkeypatch.setattr(balancing, "REST_SECONDS", 0.1)
    balance.follow((1,))
    balance.rest(1)
    before = time.monotonic()
    assert chosen(balance, tried={1}, wait_seconds=30) == 1
    assert 0.1 <= time.monotonic() - before < 5


def test_a_request_waits_for_an_engine_that_is_about_to_be_served(balance):
    balance.follow(())
    looks = []

    def refresh() -> None:
        looks.append(1)
        if len(looks) == 3:
            balance.follow((4,))

    assert chosen(balance, wait_seconds=30, refresh=refresh) == 4


def test_without_an_engine_a_request_is_refused_after_its_time(balance):
    balance.follow(())
    with pytest.raises(Refused, match="no engine runs") as refused:
        chosen(balance, wait_seconds=0.1)
    assert refused.value.status == 503
    assert refused.value.headers == {"Retry-After": "10"}
