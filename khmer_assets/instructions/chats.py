"""The one schema of a chat, what makes a chat valid, and its split.

Where chats come from does not belong here (`embedded_chats.py`, `chat_files.py`), nor what sets valid ones aside
(`chat_dataset.py`).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import polars as pl
from pydantic import model_validator

from khmer_assets.foundation.settings import Ratio, Settings
from khmer_assets.khmer.utterances import bare, hash_of_conversation


class Split(Settings):
    """Shares of the chats; they must sum to 1."""

    train: Ratio = 0.8
    validation: Ratio = 0.1
    test: Ratio = 0.1

    @model_validator(mode="after")
    def _sums_to_one(self) -> "Split":
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("train, validation and test must sum to 1")
        return self


SAMPLE_CHATS = 10  # that are shown of many

MESSAGE = pl.Struct({"role": pl.String(), "content": pl.String()})

# `task` is what the assistant does (answer, or one of `tutor_tasks.TASKS`), `category` what it is about.
# `label` (truth, majority, invalid), `toxicity` (safe, or the category of harm), `tags` (topics) and `quality`
# (1 to 10) are judgments: null, or empty, until somebody has made them
NEW_CHAT = pl.Schema(
    {
        "id": pl.String(),
        "source": pl.String(),
        "language": pl.String(),
        "task": pl.String(),
        "category": pl.String(),
        "messages": pl.List(MESSAGE),
        "label": pl.String(),
        "toxicity": pl.String(),
        "tags": pl.List(pl.String()),
        "quality": pl.Float64(),
    }
)
ANSWER = "answer"
CHAT = pl.Schema({**NEW_CHAT, "content_hash": pl.String(), "split": pl.String()})


class Message(TypedDict):
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str


def new_chat(
    identity: str,
    source: str,
    language: str,
    category: str,
    turns: Sequence[str],
    system: str | None = None,
    task: str = ANSWER,
) -> dict[str, Any]:
    """A row of `NEW_CHAT`; `turns` are what user and assistant say, in alternation."""
    messages = [Message(role="system", content=system)] if system else []
    for number, content in enumerate(turns):
        messages.append(Message(role="assistant" if number % 2 else "user", content=content))
    return {"id": identity, "source": source, "language": language, "task": task, "category": category,
            "messages": messages, "label": None, "toxicity": None, "tags": [], "quality": None}  # fmt: skip


def find_fault(messages: Iterable[Message] | None) -> tuple[str, float, str] | None:
    """Rule, measure (the number of the message, from 1) and reason, or None for a valid chat.

    A valid chat is an optional system message, then user and assistant in turn, the assistant last; nobody is silent.

    >>> find_fault([Message(role="user", content="Hello")])
    ('unanswered', 1.0, 'the last message is by user, expected an answer by assistant')
    """
    messages = list(messages or [])
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    first = len(messages) - len(turns) + 1
    if not turns:
        return "no_turns", float(len(messages)), "there is no message by user"
    for number, message in enumerate(turns):
        expected = "assistant" if number % 2 else "user"
        if message["role"] != expected:
            reason = f"message {first + number} is by {message['role']}, expected {expected}"
            return "role_order", float(first + number), reason
    for number, message in enumerate(messages, 1):
        if not (message["content"] or "").strip():
            return "empty_message", float(number), f"message {number} by {message['role']} is empty"
    if turns[-1]["role"] != "assistant":
        return "unanswered", float(len(messages)), "the last message is by user, expected an answer by assistant"
    return None


def hash_of(messages: Iterable[Message] | None) -> str:
    """SHA-256 of what is said and by whom. Case, spaces and the marks that end a sentence make no difference."""
    return hash_of_conversation((message["role"], message["content"] or "") for message in messages or [])


def prompt_of(messages: Iterable[Message]) -> str:
    """What the user says in all turns, a line a turn, without what makes no difference (`utterances.bare`)."""
    return "\n".join(bare(message["content"]) for message in messages if message["role"] == "user")


def split_of(content_hash: str, split: Split) -> str:
    """train, validation or test: decided by the hash alone, so that a chat stays where it is when others come.

    >>> split_of("00" * 32, Split(train=0.8, validation=0.1, test=0.1))
    'train'
    """
    position = int(content_hash[:12], 16) / 16**12
    if position < split.train:
        return "train"
    return "validation" if position < split.train + split.validation else "test"


def chats_of(chats: Path, split: str) -> list[list[dict[str, str]]]:
    """The messages of the chats of one split."""
    frame = pl.scan_parquet(chats / "data.parquet").filter(pl.col("split") == split)
    return frame.select("messages").collect()["messages"].to_list()


def readable(chats: pl.DataFrame) -> pl.DataFrame:
    """One line a chat, for people."""
    said = [" / ".join(message["content"] for message in messages) for messages in chats["messages"].to_list()]
    return chats.select("category", "language", "split", chat=pl.Series(said, dtype=pl.String))


def said(chats: pl.DataFrame) -> pl.DataFrame:
    """A row a chat (id, split, text): what user and assistant say, a line a message."""
    texts = ["\n".join(m["content"] for m in chat if m["role"] != "system") for chat in chats["messages"].to_list()]
    return chats.select("id", "split", text=pl.Series(texts, dtype=pl.String))
