"""A limit holds in every window of a minute, however uneven the requests are, and all of it is used."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.teachers.limits import KNOWN_AFTER, Limits, Size, Sizes
from khmer_assets.teachers.settings import Teacher


def sent(limits, sizes, seconds, starts=(0.0,)):
    """(time, size) of what is sent as fast as it may be; at each of `starts` a process begins anew."""
    teacher = Teacher(name="a", address="http://127.0.0.1:1/v1", model="m", **limits)
    times, now = [], 0.0
    for start, end in zip(starts, [*starts[1:], seconds], strict=True):
        now = max(now, start)
        bucket = Limits(teacher, now)
        bucket.note((at, size) for at, size in times if at > now - 60)
        while True:
            size = sizes()
            while now < end and (wait := bucket.wait(size, now)) > 0:
                now += wait + 0.001
            if now >= end:
                break
            bucket.take(size, now)
            times.append((now, size))
    return times


def largest_window(times, took):
    largest = total = first = 0
    for at, size in times:
        total += took(size)
        while times[first][0] <= at - 60:
            total -= took(times[first][1])
            first += 1
        largest = max(largest, total)
    return largest


@pytest.mark.parametrize("limit", [60, 500, 3000])
def test_requests_a_minute_are_never_more_and_hardly_less(limit):
    times = sent({"requests_a_minute": limit}, lambda: Size(100, 10), 130)
    assert largest_window(times, lambda size: 1) <= limit
    assert len(times) >= (0.99 * limit - 1) * 130 / 60


def test_what_a_pause_has_held_up_is_made_up_for_within_the_limit():
    pauses = iter(range(10**9))
    times = sent({"requests_a_minute": 6000}, lambda: Size(next(pauses), 10), 60)
    before = len(times)
    teacher = Teacher(name="a", address="http://127.0.0.1:1/v1", model="m", requests_a_minute=6000)
    limits, now, count = Limits(teacher, 0.0), 0.0, 0
    while now < 60:
        while limits.wait(Size(1, 1), now) == 0:
            limits.take(Size(1, 1), now)
            count += 1
        now += 0.5
    assert before >= 0.99 * 6000
    assert 0.99 * 6000 <= count <= 6000


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.integers(100, 400))
def test_tokens_a_minute_of_uneven_requests_are_never_more_and_hardly_less(seed, largest):
    pick = random.Random(seed)
    times = sent({"prompt_tokens_a_minute": 60_000}, lambda: Size(pick.randint(1, largest), 10), 130)
    assert 0.97 * 60_000 <= largest_window(times, lambda size: size.prompt) <= 60_000


def test_processes_that_are_killed_and_begin_anew_do_not_exceed_the_limit():
    starts = [float(second) for second in range(0, 60, 3)]
    times = sent({"requests_a_minute": 1200}, lambda: Size(1, 1), 90, starts)
    assert largest_window(times, lambda size: 1) <= 1200


def test_what_was_guessed_too_high_comes_back():
    teacher = Teacher(name="a", address="http://127.0.0.1:1/v1", model="m", answer_tokens_a_minute=6000)
    limits = Limits(teacher, 0.0)
    taken = limits.take(Size(0, 600), 0.0)
    assert limits.wait(Size(0, 10), 0.0) == pytest.approx(6, rel=0.1)
    limits.correct(taken, Size(0, 0))
    assert limits.wait(Size(0, 1), 0.0) == 0


def test_a_guess_is_a_bound_until_enough_is_known_and_then_the_mean():
    sizes = Sizes()
    assert sizes.likely(3000, 1, 500).prompt > 3000
    for _ in range(KNOWN_AFTER):
        sizes.learn(3000, 1, Size(1000, 40))
    assert sizes.likely(6000, 2, 500) == Size(2000, 80)
    assert sizes.at_most(6000, 500).prompt >= 2000
    assert sizes.at_most(6000, 500).answer == 500
