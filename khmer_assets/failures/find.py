"""Finds what the model got wrong: held-out chats and the recipe's prompts, and what users asked, if the recipe allows.

| origin | what is a failure | the right answer |
|---|---|---|
| chats | a held-out chat (splits validation and test) that is not answered exactly | known |
| prompts | a prompt of the evaluation of which a check does not hold | the checks |
| unsure | a conversation in the audit log whose answer had a low confidence | not known |
| dissatisfied | one whose user said that the answer was not good | not known |

Nothing of it is ever learned from: failures say what new chats should be about, and measure what was gained.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.adapters.adapter import TrainedAdapter
from khmer_assets.evaluation.engines import TransformersEngine
from khmer_assets.evaluation.examination import Examination
from khmer_assets.evaluation.tasks.chats import identity_of
from khmer_assets.foundation.settings import PositiveInt, Ratio
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chats import MESSAGE, chats_of
from resources.payload import PayloadRun

NAME = "failures"  # of the adapter
FAILURE = pl.Schema(
    {
        "id": pl.String(),
        "origin": pl.String(),
        "prompt": pl.String(),
        "messages": pl.List(MESSAGE),
        "answer": pl.String(),
        "expected": pl.String(),
        "reason": pl.String(),
    }
)
ROWS = "failures.parquet"
HELD_OUT = ("validation", "test")
MOST_RECORDS = 20_000  # the newest of the audit log
MOST_BYTES = 1_000_000  # of a record
MOST_CHARACTERS = 4_000  # of what a user asked


class Failures(TrainedAdapter):
    """An adapter that learns from what the model got wrong, served as `khmer-failures`; made on demand.

    `consent`: whether conversations of users (the audit log) may be read for it. `max_confidence`: below it an answer
    counts as unsure. `max_held_out`: how many held-out chats are asked. `chats`: how many new ones are looked for, for
    each cluster of failures.
    """

    consent: bool = False
    max_confidence: Ratio = 0.8
    max_held_out: PositiveInt = 2_000
    chats: PositiveInt = 100


class Spec(BaseModel):
    """Folders of the model, of chat_dataset and of the model's evaluation; `records` is that of the audit log, if it
    may be read."""

    model: Path
    chats: Path
    evaluation: Path
    records: Path | None
    settings: Failures
    max_new_tokens: int
    context_length: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `failures.parquet` (`FAILURE`)."""
    import torch
    from transformers import AutoTokenizer

    from khmer_assets.training import models

    held_out = held_out_chats(spec.chats, spec.settings.max_held_out)
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    model = models.load_model(spec.model, torch.bfloat16).to(models.device()).eval()  # as it is served
    examination = Examination(TransformersEngine(model, spec.context_length), tokenizer, spec.max_new_tokens)
    run.log(f"{len(held_out):,} held-out chats are asked")
    answers = examination.answers([chat[:-1] for chat in held_out])
    rows = [
        failure("chats", identity_of(chat), chat[:-1], answer.text, chat[-1]["content"].strip(), "not exactly so")
        for chat, answer in zip(held_out, answers, strict=True)
        if answer.text != chat[-1]["content"].strip()
    ]
    rows += list(_prompts(spec.evaluation))
    unreadable = 0
    if spec.records is not None:
        conversations, unreadable = read_records(spec.records, spec.settings.max_confidence)
        rows += conversations
    frame = pl.DataFrame(rows, schema=FAILURE).unique("id", keep="first", maintain_order=True)
    frame.write_parquet(run.output / ROWS)
    counted = frame.group_by("origin").len("failures").sort("origin")
    return {
        "asked": len(held_out),
        "failures": frame.height,
        "by_origin": markdown_table(counted),
        "conversations": "read" if spec.records is not None else "not read: failures.consent is false",
        "unreadable_records": unreadable,
    }


def held_out_chats(chats: Path, most: int) -> list[list[dict[str, str]]]:
    """The chats that are not trained on, the first `most`."""
    return [chat for split in HELD_OUT for chat in chats_of(chats, split) if len(chat) > 1][:most]


def failure(
    origin: str, identity: str, messages: Sequence[Any], answer: str | None, expected: str | None, reason: str
) -> dict[str, Any]:
    """A row of `FAILURE`."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    prompt = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    return {"id": identity, "origin": origin, "prompt": prompt, "messages": turns, "answer": answer,
            "expected": expected, "reason": reason}  # fmt: skip


def _prompts(evaluation: Path) -> Iterator[dict[str, Any]]:
    for one in json.loads((evaluation / "evaluation.json").read_text()).get("answers", []):
        if one["failures"]:
            asked = [{"role": "user", "content": one["prompt"]}]
            yield failure("prompts", _digest(one["prompt"]), asked, one["answer"], None, "; ".join(one["failures"]))


def read_records(folder: Path, max_confidence: float) -> tuple[list[dict[str, Any]], int]:
    """The conversations of the audit log that were answered unsurely or not to the user's satisfaction, the newest
    first, and how many records could not be read."""
    found: list[dict[str, Any]] = []
    unreadable = read = 0
    for day in sorted(folder.glob("????-??-??"), reverse=True):
        for file in sorted(day.glob("*.json"), key=lambda one: one.stem.rpartition("_")[2], reverse=True):
            if read == MOST_RECORDS:
                return found, unreadable
            read += 1
            try:
                if file.stat().st_size > MOST_BYTES:
                    raise ValueError("too large")
                record = json.loads(file.read_text(encoding="utf-8"))
                row = of_record(record, max_confidence)
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                unreadable += 1  # a record is written by the gateway alone, but a disk may have cut it
                continue
            if row is not None:
                found.append(row)
    return found, unreadable


def of_record(record: dict[str, Any], max_confidence: float) -> dict[str, Any] | None:
    """The failure that a record of the audit log tells of; nothing where it tells of none, or of no chat.

    A user who is not satisfied says so in the next turn: what failed is the answer before it.
    """
    turns = record.get("messages")
    if record.get("outcome") != "completed" or not isinstance(turns, list):
        return None
    asked = [turn for turn in turns if turn["role"] in ("system", "user", "assistant")]
    if not asked or asked[-1]["role"] != "user" or any(not isinstance(turn["content"], str) for turn in asked):
        return None
    if record.get("dissatisfied") is True:
        if len(asked) < 3 or asked[-2]["role"] != "assistant":
            return None
        row = failure(
            "dissatisfied", str(record["id"]), asked[:-2], asked[-2]["content"], None, asked[-1]["content"][:200]
        )
    elif (confidence := record.get("confidence")) is not None and float(confidence) < max_confidence:
        answer = record["output"] if isinstance(record.get("output"), str) else None
        row = failure("unsure", str(record["id"]), asked, answer, None, f"confidence {float(confidence):.2f}")
    else:
        return None
    return row if 0 < len(row["prompt"].strip()) <= MOST_CHARACTERS else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
