"""A user's chats are read line by line: what is a chat is normalized, what is none is set aside with its reason."""

import gzip
import json
import os

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from khmer_assets.instructions import chat_files
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chat_files import read_chats
from khmer_assets.instructions.chats import Split
from khmer_assets.khmer.normalization import Normalization

NORMALIZATION = Normalization(zero_width_space="remove", fold_deprecated=True)
SPLIT = Split(train=1, validation=0, test=0)


def line(*contents: str) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": content} for number, content in enumerate(contents)]
    return json.dumps({"messages": messages}, ensure_ascii=False)


@pytest.fixture
def read(tmp_path):
    def read(content: bytes) -> pl.DataFrame:
        (tmp_path / "chats.jsonl").write_bytes(content)
        return split_chats(read_chats(tmp_path / "chats.jsonl", "numbers", NORMALIZATION), SPLIT).collect()

    return read


def test_chats_are_normalized_and_their_language_is_told(read):
    chats = read("\n".join([line("លេខ​ ៥?", "ប្រាំ"), "", line("Five?", "five")]).encode())
    khmer = chats.row(by_predicate=pl.col("language") == "khm", named=True)
    assert khmer["messages"][0]["content"] == "លេខ ៥?", "without the zero width space"
    assert (khmer["id"], khmer["source"], khmer["category"]) == ("numbers-1", "numbers", "numbers")
    assert chats.filter(language="eng")["id"].to_list() == ["numbers-3"]
    assert chats["rule"].null_count() == 2


@pytest.mark.parametrize(
    ("content", "rule", "reason"),
    [
        (b'{"a', "unreadable", "line 1: Invalid JSON"),
        (b"\xff\xff", "unreadable", "line 1: "),
        (b'{"text": "x"}', "unreadable", "line 1: messages Field required"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "unreadable", "line 1: messages.0.role Input should"),
        (line("Alone?").encode(), "unanswered", "the last message is by user"),
        (line(" ", "x").encode(), "empty_message", "message 1 by user is empty"),
        ((line("A", "b") + "\n" + line("a ", "B.")).encode(), "duplicate_chat", "says the same as the chat numbers-1"),
    ],
)
def test_what_is_no_chat_is_set_aside_with_the_reason(read, content, rule, reason):
    aside = read(content).filter(pl.col("rule").is_not_null()).to_dicts()
    assert [row["rule"] for row in aside] == [rule]
    assert aside[0]["reason"].startswith(reason)


def test_a_line_without_end_is_set_aside_and_the_next_is_read(read, monkeypatch):
    monkeypatch.setattr(chat_files, "MAX_LINE_BYTES", 200)
    chats = read(b"x" * 1000 + b"\n" + line("A", "b").encode() + b"\n" + b"y" * 300)
    reasons = chats.sort("id")["reason"].to_list()
    assert reasons == ["line 1: the line has more than 200 bytes", None, "line 3: the line has more than 200 bytes"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"[" + line("A", "b").encode() + b"]", "chats.jsonl: is one JSON document, and here every line must be an"),
        (json.dumps(json.loads(line("A", "b")), indent=1).encode(), "chats.jsonl: is one JSON document"),
        (line("A", "b").encode("utf-16"), "chats.jsonl: is in UTF-16"),
        (gzip.compress(line("A", "b").encode()), "chats.jsonl: is compressed with gzip"),
    ],
)
def test_a_file_that_holds_no_lines_of_json_is_refused_as_a_whole(read, content, told):
    with pytest.raises(OSError, match=told):
        read(content)


def test_a_byte_order_mark_is_no_part_of_the_first_line(read):
    assert read(b"\xef\xbb\xbf" + line("A", "b").encode())["rule"].to_list() == [None]


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="is a folder, a pipe or a device, expected a file"):
            read_chats(other, "numbers", NORMALIZATION)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=30).filter(lambda row: row.strip() and b"\n" not in row), max_size=5))
def test_every_line_is_kept_or_set_aside(read, lines):
    first = line("A", "b").encode()  # a file that begins otherwise may be refused as a whole
    assert read(b"\n".join([first, *lines])).height == 1 + len(lines)
