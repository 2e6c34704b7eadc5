"""Requests go to the engine with the least to do, wait when none runs, and leave alone what has failed."""

import asyncio
import time

import pytest

from khmer_assets.server.balancing import Balance
from khmer_assets.server.refusals import Refused


@pytest.fixture
def balance():
    balance = Balance()
    balance.follow((1, 2, 3))
    return balance


def chosen(balance, tried=(), wait_seconds=0.0, meanwhile=lambda: None) -> int:
    """The engine that a request gets; `meanwhile` is called when it waits."""

    async def ask() -> int:
        asyncio.get_running_loop().call_later(0.05, meanwhile)
        return await balance.engine(set(tried), time.monotonic() + wait_seconds)

    return asyncio.run(ask())


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


def test_an_engine_that_rests_is_asked_nothing_until_it_is_well_again_or_others_are_served(balance, monkeypatch):
    assert balance.rest(1) and not balance.rest(1)  # news once
    assert balance.rested() == []  # it is not looked at at once
    assert chosen(balance) == 2
    monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
    assert balance.rested() == [1]
    monkeypatch.undo()
    balance.wake(1)
    assert chosen(balance) == 1
    balance.rest(1)
    balance.follow((1, 2))
    assert chosen(balance) == 1


def test_while_all_rest_a_request_waits_for_the_first_that_is_well_again(balance):
    for port in balance.ports:
        balance.rest(port)
    waiting = []

    def recover() -> None:
        waiting.append(balance.waiting)
        balance.wake(2)

    assert chosen(balance, tried={2}, wait_seconds=30, meanwhile=recover) == 2
    assert waiting == [1] and balance.waiting == 0


def test_a_request_waits_for_an_engine_that_is_about_to_be_served(balance):
    balance.follow(())
    assert chosen(balance, wait_seconds=30, meanwhile=lambda: balance.follow((4,))) == 4


@pytest.mark.parametrize(("seconds", "ports"), [(0.1, ()), (0.1, (1,)), (-1, ())])
def test_without_an_engine_a_request_is_refused_at_its_deadline(balance, seconds, ports):
    balance.follow(ports)
    balance.rest(1)
    with pytest.raises(Refused, match="no engine runs") as refused:
        chosen(balance, wait_seconds=seconds)
    assert refused.value.status == 503
    assert refused.value.headers == {"Retry-After": "10"}
    assert balance.waiting == 0
