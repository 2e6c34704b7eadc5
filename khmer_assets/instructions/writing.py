"""What all chats that teachers write share: what they are written about, and what becomes of a teacher's answer."""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.instructions.chats import NEW_CHAT, new_chat
from khmer_assets.khmer.normalization import Normalization, normalize
from khmer_assets.khmer.script import Language, dominant_script, script_shares
from khmer_assets.sources.documents import SET_ASIDE
from khmer_assets.teachers.asking import Answer
from khmer_assets.teachers.settings import Budget, Template

GROUND = 4_000  # characters of a document that a teacher gets: its beginning
OWN_SCRIPT = 0.6  # of the letters: code and names may be in another

Fault = tuple[str, float | None, str]  # rule, measure, reason


class Written(Settings):
    """What teachers write about: `documents` of the training mixture, and `topics`. `budget` is that of one
    materialization, `max_answer_tokens` that of one answer (Khmer takes most models several tokens a word)."""

    documents: PositiveInt | None = None
    topics: list[str] = []
    max_answer_tokens: PositiveInt = 2_048
    budget: Budget = Budget()


@dataclass(frozen=True)
class Ground:
    """What is written about: a document's text or a topic, under an id."""

    id: str
    kind: str
    text: str
    language: Language


@dataclass(frozen=True)
class Assignment:
    """A template with its rows, and how a chat is made of a row and its answer, which raises `Unfit`."""

    template: Template
    rows: list[dict[str, str]]
    chat: Callable[[Mapping[str, str], dict[str, Any]], dict[str, Any]]


class Unfit(Exception):
    """An answer that makes no chat: rule, measure and reason."""

    def __init__(self, rule: str, measure: float | None, reason: str):
        super().__init__(rule, measure, reason)


def grounds(settings: Written, texts: pl.LazyFrame | None, seed: int) -> list[Ground]:
    """Documents, those with the lowest hashes, so that most stay when others come; and the topics."""
    found = [Ground(f"topic-{_digest(topic)}", "topic", topic, _language(topic)) for topic in settings.topics]
    if settings.documents is not None and texts is not None:
        rows = drawn(texts, settings.documents, seed).select("id", "text").collect().iter_rows()
        found += [Ground(one, "document", text[:GROUND], _language(text)) for one, text in rows]
    return found


def drawn(texts: pl.LazyFrame, count: int, seed: int) -> pl.LazyFrame:
    """`count` of the documents that a training mixture trains on, at most, in an order of their own."""
    learned = texts.filter(split="train")
    hashes = learned.select("content_hash").unique().collect()["content_hash"]
    chosen = heapq.nsmallest(count, hashes, key=lambda one: _digest(f"{seed} {one}"))
    return learned.filter(pl.col("content_hash").is_in(chosen)).unique("content_hash").sort("content_hash")


def made(
    assignment: Assignment, source: str, category: str, answers: Sequence[Answer], normalization: Normalization
) -> pl.LazyFrame:
    """The chats of the answers as `NEW_CHAT` with rule, measure and reason: what the teacher did not answer as it
    should, and what `assignment.chat` refuses, is set aside."""
    rows = {row["id"]: row for row in assignment.rows}
    chats = []
    for answer in answers:
        language = _language(" ".join(rows[answer.id].values()))
        chat = new_chat(f"{source}-{answer.id}", source, language, category, [])
        fault: tuple[str | None, float | None, str | None] = answer.rule, answer.measure, answer.reason
        if answer.value is not None:
            try:
                chat |= assignment.chat(rows[answer.id], answer.value)
            except Unfit as unfit:
                fault = unfit.args[0], unfit.args[1], unfit.args[2]
        for message in chat["messages"]:
            message["content"] = normalize(message["content"], normalization)[0]
        chats.append({**chat, **dict(zip(SET_ASIDE, fault, strict=True))})
    return pl.LazyFrame(chats, schema={**NEW_CHAT, **SET_ASIDE})


def require_language(texts: Iterable[str], language: str) -> None:
    """Raises `Unfit` where less than `OWN_SCRIPT` of the letters are of the language's script."""
    khmer, latin = script_shares("\n".join(texts))
    share = khmer if language == "khm" else latin
    if share < OWN_SCRIPT:
        wanted = "Khmer" if language == "khm" else "Latin"
        raise Unfit("other_language", share, f"{share:.0%} of the letters are {wanted}, expected {OWN_SCRIPT:.0%}")


def _language(text: str) -> Language:
    return "khm" if dominant_script(text) == "Khmr" else "eng"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
