"""Keys: shown once, kept as hashes, ended when revoked."""

import json
import stat
from datetime import UTC, datetime, timedelta

import pytest

from khmer_assets.commands import main
from khmer_assets.foundation.home import HOME_VARIABLE
from khmer_assets.server.key_usage import KeyUsage
from khmer_assets.server.keys import KeyFile


@pytest.fixture
def keys(tmp_path):
    return KeyFile(tmp_path)


def test_a_key_is_found_by_its_text_which_is_kept_nowhere(keys, tmp_path):
    key, text = keys.create("សុខា", "standard")
    assert keys.find(text) == key
    assert text.rpartition("-")[2] not in (tmp_path / "keys.json").read_text()
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


def test_no_other_text_is_a_key(keys):
    _, text = keys.create("សុខា", "standard")
    keys.create("ដារ៉ា", "standard")
    for wrong in ("", "khmer", "khmer-", text[:-1], text + "x", text.upper(), "owner"):
        assert keys.find(wrong) is None


def test_a_revoked_key_is_known_by_all_processes_at_once(keys, tmp_path):
    key, text = keys.create("សុខា", "standard")
    other = KeyFile(tmp_path)
    found = other.find(text)
    assert found is not None and found.revoked is None
    keys.revoke(key.id)
    found = other.find(text)
    assert found is not None and found.revoked is not None
    assert [found.revoked is not None for found in keys.all()] == [True]
    with pytest.raises(LookupError, match="no key has the id 'nothing'"):
        keys.revoke("nothing")


def test_a_key_expires_and_a_change_of_it_is_known_to_all_processes_at_once(keys, tmp_path):
    key, text = keys.create("សុខា", "standard", expires=datetime.now(UTC) + timedelta(hours=1), monthly_tokens=10)
    other = KeyFile(tmp_path)
    found = other.find(text)
    assert found is not None and not found.has_expired() and found.monthly_tokens == 10
    keys.change(key.id, expires=datetime.now(UTC) - timedelta(seconds=1))
    assert other.find(text).has_expired()
    keys.change(key.id, tier="large", expires=None, monthly_tokens=None)
    found = other.find(text)
    assert (found.tier, found.expires, found.monthly_tokens, found.created) == ("large", None, None, key.created)
    keys.change(key.id, monthly_tokens=5)
    assert (other.find(text).tier, other.find(text).monthly_tokens) == ("large", 5)


def test_a_key_gets_another_text_and_the_one_before_counts_as_long_as_it_may(keys, tmp_path):
    key, first = keys.create("សុខា", "standard")
    _, second = keys.rotate(key.id, hours=1)
    assert keys.find(first).id == keys.find(second).id == key.id
    _, third = keys.rotate(key.id, hours=0)
    assert [keys.find(text) is not None for text in (first, second, third)] == [False, False, True]
    assert not any(text.rpartition("-")[2] in (tmp_path / "keys.json").read_text() for text in (first, second, third))
    with pytest.raises(LookupError):
        keys.rotate("nothing", 1)


def test_keys_of_an_earlier_version_are_read(keys, tmp_path):
    key, text = keys.create("សុខា", "standard")
    old = [{"id": key.id, "name": "សុខា", "tier": "standard", "sha256": key.sha256, "created": key.created.isoformat()}]
    (tmp_path / "keys.json").write_text(json.dumps(old))
    assert keys.find(text).monthly_tokens is None


def test_the_commands_create_list_and_revoke(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))

    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["khmer_assets", "keys", *words])
        status = main()
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    status, output = run("create", "សុខា")
    text = output.splitlines()[0]
    key = KeyFile(tmp_path / "server").find(text)
    assert status == 0 and key is not None
    assert key.id in run("list")[1] and text not in run("list")[1]
    assert run("create", "x", "--tier", "gold") == (2, "--tier: given 'gold', expected one of standard, large\n")
    assert run("change", key.id, "--tier", "large", "--expires", "2999-01-31", "--monthly-tokens", "7000") == (
        0, f"{key.id}  large         {key.created:%Y-%m-%d}  valid               until 2999-01-31  "
        "7,000 tokens a month        សុខា\n",
    )  # fmt: skip
    for wrong, told in (("--expires", "soon"), ("--monthly-tokens", "0"), ("--tier", "gold")):
        status, output = run("change", key.id, wrong, told)
        assert status == 2 and output.startswith(f"{wrong}: given {told!r}, expected")
    assert run("change", "0", "--expires", "none")[0] == 2
    status, output = run("rotate", key.id, "--keep-hours", "1")
    assert status == 0 and KeyFile(tmp_path / "server").find(output.splitlines()[0]) is not None
    KeyUsage(tmp_path / "server").add(key.id, 1234, 56)
    assert run("usage", key.id)[1].splitlines()[1].split()[1:] == [key.id, "1", "1,234", "56", "សុខា"]
    assert run("usage", "--days", "0")[0] == 2
    assert run("revoke", key.id)[0] == 0
    key = KeyFile(tmp_path / "server").find(text)
    assert key is not None and key.revoked is not None
    assert run("revoke", "0")[0] == 2
    for spoiled in ("[", '{"id": "1"}', '[{"id": "1"}]'):
        (tmp_path / "server" / "keys.json").write_text(spoiled)
        for words in (["list"], ["create", "ដារ៉ា"], ["revoke", key.id]):
            status, told = run(*words)
            (line,) = told.splitlines()
            assert status == 2 and line.startswith(f"{tmp_path / 'server' / 'keys.json'}: expected API keys, but")
        assert (tmp_path / "server" / "keys.json").read_text() == spoiled
