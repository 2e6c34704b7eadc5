"""A user's chats are read line by line: what is a chat is normalized, what is none is set aside with its reason."""

import gzip
import io
import json
import os

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.foundation.settings import validated
from khmer_assets.instructions import chat_files
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chat_files import ChatFiles, read_all, read_chats
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
        (gzip.compress(line("A", "b").encode(), mtime=0), "chats.jsonl: is compressed with gzip"),
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


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=30).filter(lambda row: row.strip() and b"\n" not in row), max_size=5))
def test_every_line_is_kept_or_set_aside(read, lines):
    first = line("A", "b").encode()  # a file that begins otherwise may be refused as a whole
    assert read(b"\n".join([first, *lines])).height == 1 + len(lines)


SHARE_GPT = {"conversations": [{"from": "human", "value": "តើនេះជាអ្វី?"}, {"from": "gpt", "value": "ឆ្មា"}]}
TASK = {"instruction": "បកប្រែ", "input": "cat", "output": "ឆ្មា"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (SHARE_GPT, [("user", "តើនេះជាអ្វី?"), ("assistant", "ឆ្មា")]),
        ({**SHARE_GPT, "system": "ខ្លីៗ"}, [("system", "ខ្លីៗ"), ("user", "តើនេះជាអ្វី?"), ("assistant", "ឆ្មា")]),
        (TASK, [("user", "បកប្រែ\n\ncat"), ("assistant", "ឆ្មា")]),
        ({**TASK, "input": ""}, [("user", "បកប្រែ"), ("assistant", "ឆ្មា")]),
        ({**TASK, "input": None, "messages": None}, [("user", "បកប្រែ"), ("assistant", "ឆ្មា")]),
        (
            {"conversations": [{"role": "user", "content": "ក"}, {"role": "assistant", "content": "ខ"}]},
            [("user", "ក"), ("assistant", "ខ")],
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "ក"}]},
                    {"role": "assistant", "content": "ខ"},
                ]
            },
            [("user", "ក"), ("assistant", "ខ")],
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, [("user", "\ufffd")]),
        ({"conversations": "ក"}, "line 1: messages Input should be a valid list"),
        ({"conversations": [{"from": ["human"], "value": "ក"}]}, "line 1: messages.0.role Input should be"),
        ({"conversations": [{"from": "human"}]}, "line 1: messages.0.content Input should be a valid"),
        ({"instruction": "ក"}, "line 1: output Field required"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "line 1: messages.0.content"),
        ("text", "line 1: expected a JSON object, found str"),
    ],
)
def test_a_layout_is_told_by_its_fields(values, expected, tmp_path):
    (tmp_path / "one.jsonl").write_text("\n" + json.dumps(values))
    (chat,) = read_chats(tmp_path / "one.jsonl", "one", NORMALIZATION).collect().to_dicts()
    found = chat["unreadable"] or [(message["role"], message["content"]) for message in chat["messages"]]
    if isinstance(expected, str):
        assert isinstance(found, str) and found.startswith(expected.replace("line 1", "line 2"))
    else:
        assert found == expected


def test_judgments_are_taken_over_where_they_are_such(tmp_path):
    good = {
        **TASK,
        "category": "words",
        "quality": 8,
        "tags": ["a\ud800"],
        "label": "truth",
        "toxicity": "safe",
        "id": 7,
    }
    bad = {**TASK, "category": "", "quality": 99, "tags": "a", "label": 1, "toxicity": None}
    (tmp_path / "two.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(bad)}")
    first, second = read_chats(tmp_path / "two.jsonl", "two", NORMALIZATION).collect().to_dicts()
    names = ("category", "quality", "tags", "label", "toxicity")
    assert [first[name] for name in names] == ["words", 8.0, ["a\ufffd"], "truth", "safe"]
    assert [second[name] for name in names] == ["two", None, [], None, None]


def packed(content: bytes, compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, compression) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


ROWS = [SHARE_GPT, TASK, {"no": "chat"}]
LINES = "\n".join(json.dumps(row) for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=1).encode()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame([SHARE_GPT, TASK, {}]).write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.json", ARRAY),
        ("a.json", b"\xef\xbb\xbf" + ARRAY),
        ("a.json", LINES),
        ("a.parquet", parquet()),
        ("a.jsonl.gz", packed(LINES, "gzip")),
        ("a.JSONL.ZST", packed(LINES, "zstd")),
        ("a.json.gz", packed(ARRAY, "gzip")),
        ("a.parquet.gz", packed(parquet(), "gzip")),
    ],
)
def test_every_format_gives_the_same_chats(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    chats = read_chats(tmp_path / name, "a", NORMALIZATION).collect()
    assert chats["id"].to_list() == ["a-1", "a-2", "a-3"]
    assert [row and row.split(": ")[1] for row in chats["unreadable"]] == [None, None, "messages Field required"]
    assert chats["messages"][1][0]["content"] == "បកប្រែ\n\ncat"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl.gz", packed(LINES * 2000, "gzip")[:-2000], "after line"),
        ("a.json", ARRAY[:-20], "value 3: Invalid JSON"),
        ("a.json", b"[1, 2" + b"\xff" * 9 + b"]", "value 3: Invalid JSON"),
        ("a.json", b'[{"a": 1}, oops, {"b": 2}]', "value 2: Invalid JSON"),
    ],
)
def test_what_breaks_off_keeps_what_was_read_and_says_where(name, content, told, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_files, "READ_AT_ONCE", 4)
    (tmp_path / name).write_bytes(content)
    reasons = read_chats(tmp_path / name, "a", NORMALIZATION).collect()["unreadable"].to_list()
    assert len(reasons) > 1 and told in reasons[-1]


def test_what_is_packed_is_unpacked_within_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_files, "MAX_UNPACKED_BYTES", 100_000)
    (tmp_path / "a.jsonl.gz").write_bytes(packed(b" " * 50_000_000, "gzip"))
    with pytest.raises(OSError, match="has over 100,000 bytes when unpacked"):
        read_chats(tmp_path / "a.jsonl.gz", "a", NORMALIZATION)


def test_the_files_of_a_source_are_found_beside_the_recipe(tmp_path):
    for name in ("one.jsonl", "two.jsonl"):
        (tmp_path / name).write_text(json.dumps(TASK))
    settings = validated(ChatFiles, {"path": ["*.jsonl", "one.jsonl"]}, tmp_path / "recipe.yaml")
    chats = read_all(settings, "mine", NORMALIZATION).collect()
    assert chats["id"].to_list() == ["mine-1-1", "mine-2-1"]
    assert set(chats["source"]) == {"mine"}
    address = validated(ChatFiles, {"path": "s3://bucket/chats/*.jsonl"}, tmp_path / "recipe.yaml")
    assert address.path == "s3://bucket/chats/*.jsonl"
