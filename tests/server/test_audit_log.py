"""Audit records: whole, in their place, settled after a kill, redacted, and gone after their time."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

from khmer_assets.server.audit_log import AuditLog, Record
from khmer_assets.server.requests import Chat

BODY = Chat.model_validate({"model": "khmer", "messages": [{"role": "user", "content": "ទូរស័ព្ទ 012 345 678"}]})
PIECE = 'data: {"choices":[{"index":0,"delta":{"content":"សួស្តី 012 345 678"}}]}\n\n'
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.server.test_audit_log import BODY, PIECE, AuditLog, Record
record = Record(AuditLog(Path(sys.argv[1]), [], 1), "/v1/chat/completions", BODY, "k")
for _ in range(int(sys.argv[2])):
    record.append(PIECE.encode())
os.kill(os.getpid(), signal.SIGKILL)
"""

FULL = """
import os, resource, sys
from pathlib import Path
from tests.server.test_audit_log import BODY, PIECE, AuditLog, Record
log = AuditLog(Path(sys.argv[1]), [], 1)
before = len(os.listdir("/proc/self/fd"))
for _ in range(5):
    whole, streamed = (Record(log, "/v1/chat/completions", BODY, "k") for _ in range(2))
    whole.whole(b'{"choices": [{"message": {"content": "a"}}]}')
    streamed.append(PIECE.encode())
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))  # writes end halfway, as on a full disk
    for act in (whole.close, streamed.close):
        try:
            act("completed")
        except OSError as error:
            print(error.strerror)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert len(os.listdir("/proc/self/fd")) == before
"""


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path, [], 30)


def records(log) -> list[dict]:
    return [json.loads(file.read_text()) for file in log.folder.glob("????-??-??/*.json")]


def test_what_a_killed_gateway_had_sent_is_charged_to_its_key(log):
    record, charged = Record(log, "/v1/chat/completions", BODY, "k"), []
    used = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    record.append(PIECE.replace("]}", f'],"usage":{json.dumps(used)}}}').encode())
    assert AuditLog(log.folder, [], 30).settle(lambda *told: charged.append(told)) == 1
    assert charged == [("k", 7, 2)]


def test_what_a_killed_gateway_had_sent_is_settled_into_a_record(log):
    subprocess.run([sys.executable, "-c", KILLED, str(log.folder), "2"], check=False)
    assert records(log) == []
    assert log.settle() == 1
    (record,) = records(log)
    assert record["outcome"] == "interrupted" and record["error"] == "the gateway was killed"
    assert record["output"] == "សួស្តី 012 345 678" * 2
    assert record["key_id"] == "k" and record["user_input"] == "ទូរស័ព្ទ 012 345 678"
    assert log.settle() == 0
    assert not list((log.folder / ".open").iterdir())


def test_a_journal_that_breaks_anywhere_settles_or_had_sent_nothing(log):
    record = Record(log, "/v1/chat/completions", BODY, "k")
    record.append(PIECE.encode())
    (journal,) = (log.folder / ".open").iterdir()
    whole = journal.read_bytes()
    head = whole.index(b"\n") + 1
    for size in range(0, len(whole), 7):
        journal.write_bytes(whole[:size])
        assert log.settle() == (size >= head - 1)
        for day in log.folder.glob("????-??-??"):
            shutil.rmtree(day)


def test_an_answer_that_was_sent_whole_before_the_kill_is_complete(log):
    record = Record(log, "/v1/chat/completions", BODY, "k")
    record.append(PIECE.encode() + b"data: [DONE]\n\n")
    log.settle()
    assert records(log)[0]["outcome"] == "completed"


def test_a_kill_between_the_record_and_the_end_of_its_journal_leaves_one_record(log):
    record = Record(log, "/v1/chat/completions", BODY, "k")
    record.append(PIECE.encode())
    (journal,) = (log.folder / ".open").iterdir()
    content = journal.read_bytes()
    record.close("completed")
    journal.write_bytes(content)
    assert log.settle() == 0
    assert [found["outcome"] for found in records(log)] == ["completed"]


def test_what_must_not_be_kept_is_redacted_everywhere(tmp_path):
    log = AuditLog(tmp_path, [r"\d[\d ]{7,}\d"], 30)
    record = Record(log, "/v1/chat/completions", BODY, "012345678")
    record.append(PIECE.encode())
    record.close("completed")
    (found,) = records(log)
    assert "345" not in json.dumps({**found, "time": "", "key_id": ""})
    assert found["output"] == "សួស្តី [redacted]" and found["key_id"] == "012345678"


def test_a_full_disk_leaves_no_half_record_and_no_open_file_and_journals_are_settled_later(log):
    full = subprocess.run([sys.executable, "-c", FULL, str(log.folder)], capture_output=True, text=True, check=False)
    assert full.returncode == 0, full.stderr
    assert full.stdout.splitlines() == ["File too large"] * 10
    assert records(log) == []
    assert log.settle() == 5
    assert [record["output"] for record in records(log)] == ["សួស្តី 012 345 678"] * 5
    assert not list((log.folder / ".open").iterdir())


def test_records_are_their_owners_alone_to_read(log):
    before = os.umask(0o022)
    try:
        record = Record(log, "/v1/chat/completions", BODY, "k")
        record.append(PIECE.encode())
        record.close("completed")
    finally:
        os.umask(before)
    (file,) = log.folder.glob("????-??-??/*.json")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (log.folder, file.parent, file)]
    assert modes == [0o700, 0o700, 0o600]


def test_records_are_forgotten_after_their_time_whatever_cannot_be(log):
    (log.folder / "2020-01-01").touch()  # no folder: it cannot be emptied
    for day in ("2020-01-02", "2999-01-01", "not-a-day!"):
        (log.folder / day).mkdir()
    assert list(log.forget_old()) == ["2020-01-01"]
    left = sorted(folder.name for folder in log.folder.iterdir())
    assert left == [".open", "2020-01-01", "2999-01-01", "not-a-day!"]
