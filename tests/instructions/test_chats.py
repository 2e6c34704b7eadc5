"""Which chats are valid, and how they are split."""

import hashlib

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chats import (
    CHAT,
    NEW_CHAT,
    Message,
    Split,
    find_fault,
    hash_of,
    new_chat,
    split_of,
)

SPLIT = Split(train=0.8, validation=0.1, test=0.1)


def messages(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in turns]


@pytest.mark.parametrize(
    "chat",
    [
        messages(("user", "សួស្តី"), ("assistant", "សួស្តី!")),
        messages(("system", "ឆ្លើយខ្លីៗ"), ("user", "សួស្តី"), ("assistant", "សួស្តី!")),
        messages(("user", "មួយ"), ("assistant", "ពីរ"), ("user", "បី"), ("assistant", "បួន")),
    ],
)
def test_user_and_assistant_speak_in_turn_after_an_optional_system_message(chat):
    assert find_fault(chat) is None


@pytest.mark.parametrize(
    ("chat", "rule", "measure"),
    [
        (None, "no_turns", 0),
        (messages(("system", "ឆ្លើយខ្លីៗ")), "no_turns", 1),
        (messages(("assistant", "សួស្តី!")), "role_order", 1),
        (messages(("user", "មួយ"), ("user", "ពីរ")), "role_order", 2),
        (messages(("user", "មួយ"), ("system", "ពីរ")), "role_order", 2),
        (messages(("user", "មួយ"), ("tool", "ពីរ")), "role_order", 2),
        (messages(("user", "មួយ"), ("assistant", " \n")), "empty_message", 2),
        (messages(("system", ""), ("user", "មួយ"), ("assistant", "ពីរ")), "empty_message", 1),
        (messages(("user", "មួយ"), ("assistant", "ពីរ"), ("user", "បី")), "unanswered", 3),
    ],
)
def test_other_chats_have_a_fault_with_the_number_of_the_message(chat, rule, measure):
    fault = find_fault(chat)
    assert fault is not None
    assert fault[:2] == (rule, measure)


def test_faulty_and_repeated_chats_are_set_aside_and_the_others_are_kept():
    rows = [
        new_chat("first", "here", "eng", "greeting", ["Hello", "Hi!"]),
        new_chat("again", "here", "eng", "greeting", ["  hello! ", "Hi."]),
        new_chat("silent", "here", "eng", "greeting", ["Hello"]),
        new_chat("other", "here", "eng", "greeting", ["Hello", "Good day!"]),
    ]
    frame = split_chats(pl.LazyFrame(rows, schema=NEW_CHAT), SPLIT).collect()
    assert dict(zip(frame["id"], frame["rule"], strict=True)) == {
        "first": None, "again": "duplicate_chat", "silent": "unanswered", "other": None
    }  # fmt: skip
    assert frame.filter(pl.col("id") == "again")["reason"].item() == "says the same as the chat first"
    assert frame.drop("rule", "measure", "reason").schema == CHAT
    assert frame.select("content_hash", "split").null_count().sum_horizontal().item() == 0


def test_no_chats_are_no_mistake():
    assert split_chats(pl.LazyFrame(schema=NEW_CHAT), SPLIT).collect().height == 0


@given(st.text(), st.text())
def test_the_hash_sees_who_spoke(question: str, answer: str) -> None:
    one = messages(("user", question), ("assistant", answer))
    assert hash_of(one) != hash_of(messages(("user", question), ("user", answer)))
    assert hash_of(one) == hash_of(messages(("user", f" {question} "), ("assistant", answer + " ។")))


def test_plus_and_minus_are_different_content():
    assert hash_of(messages(("user", "៣ + ៤"))) != hash_of(messages(("user", "៣ - ៤")))


@given(st.binary(min_size=1))
def test_a_chat_stays_in_train_when_train_grows(content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if split_of(digest, SPLIT) == "train":
        assert split_of(digest, Split(train=0.9, validation=0.05, test=0.05)) == "train"


def test_shares_are_those_of_the_split():
    found = [split_of(hashlib.sha256(str(n).encode()).hexdigest(), SPLIT) for n in range(5000)]
    assert found.count("train") / 5000 == pytest.approx(0.8, abs=0.03)
    assert found.count("test") / 5000 == pytest.approx(0.1, abs=0.03)
    assert {split_of("ff" * 32, Split(train=1, validation=0, test=0))} == {"train"}
