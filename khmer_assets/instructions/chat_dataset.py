"""From the chats of all sources to those that are learned: what sets a chat aside, and in which split the others are.

The order of the rules is that of `RULES`; a chat is set aside by the first that it breaks.
"""

import hashlib
from typing import Any

import polars as pl

from khmer_assets.corpus.decontamination import Evaluation, contamination_batch
from khmer_assets.corpus.personal_data import mask_texts
from khmer_assets.instructions.chats import CHAT, MESSAGE, Split, find_fault, hash_of, prompt_of, said, split_of
from khmer_assets.instructions.copies import clusters, copies_of
from khmer_assets.sources.documents import SET_ASIDE

UNREADABLE = "unreadable"
RULES = {
    UNREADABLE: "what stands there is no chat",
    "no_turns, role_order, empty_message, unanswered": "`chats.find_fault`",
    "duplicate_chat": "it was there before; case, spaces and final marks aside",
    "low_quality": "its quality is below what the recipe keeps; a chat that nobody has judged stays",
    "contaminated": "it shares a run of characters with an evaluation set, or asks what the set asks",
    "near_duplicate": "`copies.copies_of`",
}


def split_chats(
    chats: pl.LazyFrame, split: Split, evaluation: Evaluation | None = None, min_quality: float | None = None
) -> pl.LazyFrame:
    """`NEW_CHAT` rows as `CHAT` rows with rule, measure and reason (`RULES`), ordered by content hash, so well mixed.

    Personal data are masked first. Of chats that are alike the first stays, so the order of the sources decides. A row
    whose source has set it aside already (column `rule`) stays so. Every row has a split, so that the columns are
    never null.

    Chats whose prompts ask the same (`copies.clusters`) are in one split: that of the content hash of one of them,
    whom a second hash picks. So a chat stays where it is when others come, but for those that come into its cluster:
    the k-th is picked, and moves the cluster, once in k times.
    """
    rows = _masked(chats.collect()).to_dicts()
    seen: dict[str, str] = {}
    for row in rows:
        digest = row["content_hash"] = hash_of(row["messages"])
        fault = row.get("rule"), row.get("measure"), row.get("reason")
        if reason := row.pop(UNREADABLE, None):
            fault = (UNREADABLE, 1.0, reason)
        if fault[0] is None:
            fault = find_fault(row["messages"]) or fault
        if fault[0] is None and digest in seen:
            fault = ("duplicate_chat", 1.0, f"says the same as the chat {seen[digest]}")
        if fault[0] is None:
            seen[digest] = row["id"]
            if min_quality is not None and row["quality"] is not None and row["quality"] < min_quality:
                fault = (
                    "low_quality",
                    row["quality"],
                    f"quality {row['quality']:g}, expected at least {min_quality:g}",
                )
        row["rule"], row["measure"], row["reason"] = fault
        row["split"] = split_of(digest, split)
    if evaluation is not None:
        _decontaminate([row for row in rows if row["rule"] is None], evaluation)
    _set_copies_aside([row for row in rows if row["rule"] is None])
    _keep_clusters_together([row for row in rows if row["rule"] is None], split)
    return pl.LazyFrame(rows, schema={**CHAT, **SET_ASIDE}).sort("content_hash", "id")


def _masked(chats: pl.DataFrame) -> pl.DataFrame:
    """The chats with personal data masked in every message."""
    counts = chats["messages"].list.len().fill_null(0).to_list()
    flat = chats.select(pl.col("messages").explode(empty_as_null=False, keep_nulls=False)).unnest("messages")
    flat = flat.with_columns(mask_texts(flat["content"]).alias("content"))
    messages, start = flat.to_dicts(), 0
    lists = []
    for count in counts:
        lists.append(messages[start : start + count])
        start += count
    return chats.with_columns(pl.Series("messages", lists, dtype=pl.List(MESSAGE)))


def _decontaminate(rows: list[dict[str, Any]], evaluation: Evaluation) -> None:
    """Set aside what shares a run with the sets as a whole, or whose prompt alone is a text of theirs."""
    whole = said(pl.DataFrame(rows, schema={**CHAT, **SET_ASIDE}))["text"].to_list()
    asked = ["\n".join(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows]
    for texts in (whole, asked):
        batch = pl.DataFrame({"text": texts}, schema={"text": pl.String})
        empty = [pl.lit(None, kind).alias(name) for name, kind in SET_ASIDE.items()]
        judged = contamination_batch(batch.with_columns(empty), evaluation).select(*SET_ASIDE)
        for row, verdict in zip(rows, judged.iter_rows(named=True), strict=True):
            if row["rule"] is None:
                row.update(verdict)


def _set_copies_aside(rows: list[dict[str, Any]]) -> None:
    texts = said(pl.DataFrame(rows, schema={**CHAT, **SET_ASIDE}))["text"].to_list()
    for place, (other, similarity) in copies_of(texts).items():
        reason = f"Jaccard similarity {similarity:.3f} to {rows[other]['id']}, which stays"
        rows[place] |= {"rule": "near_duplicate", "measure": similarity, "reason": reason}


def _keep_clusters_together(rows: list[dict[str, Any]], split: Split) -> None:
    members: dict[int, list[str]] = {}
    numbers = clusters([prompt_of(row["messages"]) for row in rows])
    for row, number in zip(rows, numbers, strict=True):
        members.setdefault(number, []).append(row["content_hash"])
    splits = {
        number: split_of(min(hashes, key=lambda one: hashlib.sha256(one.encode()).digest()), split)
        for number, hashes in members.items()
    }
    for row, number in zip(rows, numbers, strict=True):
        row["split"] = splits[number]
