"""`khmer audit ID` shows the record of an answer."""

import json

import pytest

from khmer_assets.commands import main
from khmer_assets.foundation.home import HOME_VARIABLE
from khmer_assets.server.audit_log import AuditLog, Record
from khmer_assets.server.requests import Chat

CHAT = {"model": "khmer", "messages": [{"role": "user", "content": "តើអ្នកចូលចិត្តទន្លេទេ?"}]}


def test_a_record_is_found_by_the_id_that_its_user_got(tmp_path, monkeypatch, capsys):
    log = AuditLog(tmp_path / "audit", [], 30)
    records = [Record(log, "/v1/chat/completions", Chat.model_validate(CHAT), "k") for _ in range(3)]
    for record in records:
        record.close("completed")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr("sys.argv", ["khmer", "audit", records[1].id])
    assert main() == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["id"], found["user_input"]) == (records[1].id, "តើអ្នកចូលចិត្តទន្លេទេ?")


@pytest.mark.parametrize("wrong", ["completions", "", "../x", "0"])
def test_an_id_that_no_record_has_is_told(tmp_path, monkeypatch, capsys, wrong):
    log = AuditLog(tmp_path / "audit", [], 30)
    Record(log, "/v1/chat/completions", Chat.model_validate(CHAT), "k").close("completed")
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    monkeypatch.setattr("sys.argv", ["khmer", "audit", wrong])
    assert main() == 2
    assert f"no record has the id {wrong!r}" in capsys.readouterr().err
