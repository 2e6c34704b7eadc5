"""Keys: shown once, kept as hashes, ended when revoked."""

import stat

import pytest

from khmer_assets.commands import main
from khmer_assets.foundation.home import HOME_VARIABLE
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
