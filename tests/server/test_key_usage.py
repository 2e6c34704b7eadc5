"""What keys have used is kept by day, through restarts and full disks, and months begin at nothing."""

import sqlite3
import stat
from datetime import UTC, datetime

import pytest

from khmer_assets.server import key_usage
from khmer_assets.server.key_usage import KeyUsage, seconds_to_next_month


@pytest.fixture
def today(monkeypatch):
    def be(day: str) -> None:
        monkeypatch.setattr(key_usage, "_now", lambda: datetime.fromisoformat(f"{day}T12:00:00+00:00").astimezone(UTC))

    be("2026-11-30")
    return be


def test_requests_and_tokens_are_counted_by_key_and_day_and_outlive_the_process(tmp_path, today):
    usage = KeyUsage(tmp_path)
    for key, read, written in (("sokha", 5, 7), ("sokha", 10, 0), ("dara", 1, 1)):
        usage.add(key, read, written)
    today("2026-12-01")
    usage.add("sokha", 2, 3)
    other = KeyUsage(tmp_path)
    assert other.days(31) == [
        ("dara", "2026-11-30", 1, 1, 1),
        ("sokha", "2026-11-30", 2, 15, 7),
        ("sokha", "2026-12-01", 1, 2, 3),
    ]
    assert [used.day for used in other.days(1)] == ["2026-12-01"]
    assert {used.key for used in other.days(31, "dara")} == {"dara"}
    assert stat.S_IMODE((tmp_path / "usage.sqlite").stat().st_mode) == 0o600


def test_a_month_has_its_own_tokens_alone(tmp_path, today):
    usage = KeyUsage(tmp_path)
    usage.add("sokha", 5, 7)
    assert (usage.month("sokha"), usage.month("dara")) == (12, 0)
    assert seconds_to_next_month() == 12 * 3600
    today("2026-12-01")
    assert usage.month("sokha") == 0
    assert seconds_to_next_month() == 30.5 * 24 * 3600


def test_two_gateways_of_which_one_ends_count_together(tmp_path, today):
    first, second = KeyUsage(tmp_path), KeyUsage(tmp_path)
    for usage in (first, second, first):
        usage.add("sokha", 1, 1)
    assert first.month("sokha") == second.month("sokha") == 6


def test_what_cannot_be_written_is_written_with_the_next(tmp_path, today):
    usage = KeyUsage(tmp_path)
    usage.add("sokha", 1, 1)
    locking = sqlite3.connect(tmp_path / "usage.sqlite", isolation_level=None)
    locking.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OSError, match="not written down yet"):
        usage.add("sokha", 10, 10)
    locking.execute("ROLLBACK")
    locking.close()
    assert usage.month("sokha") == 22
    usage.add("sokha", 100, 100)
    assert KeyUsage(tmp_path).days(1) == [("sokha", "2026-11-30", 3, 111, 111)]


def test_a_file_that_is_moved_away_begins_anew_and_one_that_is_none_is_told(tmp_path, today):
    usage = KeyUsage(tmp_path)
    usage.add("sokha", 1, 1)
    for file in tmp_path.iterdir():
        file.unlink()
    usage.add("sokha", 1, 1)
    assert usage.month("sokha") == 2
    usage.close()
    (tmp_path / "usage.sqlite").write_text("half of a fi")
    with pytest.raises(OSError, match=r"usage\.sqlite: what keys have used cannot be read"):
        KeyUsage(tmp_path).month("sokha")
