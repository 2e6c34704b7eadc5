"""What sets a chat aside, and in which split the others are."""

from collections import Counter
from typing import Any

import polars as pl
import pytest

from khmer_assets.corpus.decontamination import evaluation_hashes
from khmer_assets.instructions.chat_dataset import split_chats
from khmer_assets.instructions.chats import CHAT, NEW_CHAT, Split, new_chat
from tests.instructions.test_copies import words

SPLIT = Split()


def judged(rows: list[dict], **settings: Any) -> dict[str, dict]:
    """The rows by id, each with rule, measure and reason."""
    return {
        row["id"]: row
        for row in split_chats(pl.LazyFrame(rows, schema=NEW_CHAT), SPLIT, **settings).collect().to_dicts()
    }


def chat(identity: str, *turns: str, **values: object) -> dict:
    return {**new_chat(identity, "here", "khm", "test", turns), **values}


def test_personal_data_are_masked_before_anything_is_compared():
    found = judged([chat("a", "ទូរស័ព្ទ ០១២ ៣៤៥ ៦៧៨", "បាទ"), chat("b", "ទូរស័ព្ទ ០១២ ៣៤៥ ៦៧៩", "បាទ")])
    assert found["a"]["messages"][0]["content"] == "ទូរស័ព្ទ <phone>"
    assert found["b"]["rule"] == "duplicate_chat"


def test_messages_stay_with_their_chats():
    rows = [chat("none"), chat("two", "មួយ", "ពីរ"), {**chat("null"), "messages": None}, chat("four", "ក", "ខ", "គ", "ឃ")]
    found = judged(rows)
    assert [message["content"] for message in found["four"]["messages"]] == ["ក", "ខ", "គ", "ឃ"]
    assert found["two"]["rule"] is None
    assert found["none"]["rule"] == found["null"]["rule"] == "no_turns"


def test_a_chat_is_kept_from_the_quality_that_is_asked_for():
    rows = [chat("good", "ក", "ខ", quality=7.0), chat("bad", "គ", "ឃ", quality=6.5), chat("unjudged", "ង", "ច")]
    found = judged(rows, min_quality=7)
    assert {name: row["rule"] for name, row in found.items()} == {"good": None, "bad": "low_quality", "unjudged": None}
    assert found["bad"]["measure"] == 6.5
    assert judged(rows)["bad"]["rule"] is None


@pytest.mark.parametrize("turns", [("សំណួរ", words(80, 1)), (words(80, 1), "ចម្លើយ"), ("តើមេឃពណ៌អ្វី?", "ខៀវ")])
def test_what_is_of_an_evaluation_set_is_set_aside(turns):
    """A shared run anywhere in the chat, or a short text of the set that is all that is asked."""
    evaluation = evaluation_hashes({"exam": [words(80, 1), "តើមេឃពណ៌អ្វី?"]}, 50)
    found = judged([chat("exam", *turns), chat("other", words(80, 2), "តើមេឃពណ៌អ្វី?")], evaluation=evaluation)
    assert (found["exam"]["rule"], found["other"]["rule"]) == ("contaminated", None)
    assert "exam" in found["exam"]["reason"]


def test_a_near_copy_is_set_aside_in_the_order_of_the_sources():
    text = words(300, 3)
    found = judged([chat("first", "សួរ", text), chat("second", "សួរ", text[:200] + "ក" + text[201:])])
    assert (found["first"]["rule"], found["second"]["rule"]) == (None, "near_duplicate")
    assert "to first, which stays" in found["second"]["reason"]


def test_what_a_source_has_set_aside_stays_so_and_repeats_nothing():
    rows = pl.LazyFrame([chat("bad", "ក", "ខ"), chat("good", "ក", "ខ")], schema=NEW_CHAT)
    refused = rows.with_columns(
        rule=pl.when(pl.col("id") == "bad").then(pl.lit("too_few_sentences")),
        measure=pl.lit(1.0),
        reason=pl.lit("one sentence"),
    )
    found = {row["id"]: row["rule"] for row in split_chats(refused, SPLIT).collect().to_dicts()}
    assert found == {"bad": "too_few_sentences", "good": None}


def rewordings(count: int) -> list[dict]:
    """Long questions, each in three wordings with different answers."""
    rows = []
    for number in range(count):
        text = words(200, 100 + number)
        for way in range(3):
            prompt = text[:60] + words(2, way) + text[62:]
            rows.append(chat(f"{number}-{way}", prompt, words(300, 10_000 + 3 * number + way)))
    return rows


def test_wordings_of_one_question_are_in_one_split_and_the_shares_are_those_asked_for():
    found = split_chats(pl.LazyFrame(rewordings(400), schema=NEW_CHAT), SPLIT).collect()
    assert found.drop("rule", "measure", "reason").schema == CHAT
    assert found["rule"].null_count() == 1200
    splits = found.with_columns(question=pl.col("id").str.split("-").list.first()).group_by("question").agg("split")
    assert all(len(set(names)) == 1 for names in splits["split"].to_list())
    shares = Counter(found["split"])
    assert shares["train"] / 1200 == pytest.approx(0.8, abs=0.06)
    assert shares["test"] / 1200 == pytest.approx(0.1, abs=0.05)


def test_chats_stay_where_they_are_when_others_come():
    """All that are in no cluster with the newcomers; of clusters that get a third member, about one in nine moves."""
    rows = rewordings(300)
    before = {name: row["split"] for name, row in judged([row for row in rows if not row["id"].endswith("2")]).items()}
    unrelated = judged(
        [*rows[:2], *(chat(f"new-{n}", words(200, 90_000 + n), words(300, 95_000 + n)) for n in range(50))]
    )
    assert [unrelated[row["id"]]["split"] for row in rows[:2]] == [before[row["id"]] for row in rows[:2]]
    after = judged(rows)
    moved = sum(after[name]["split"] != split for name, split in before.items()) / len(before)
    assert moved < 0.25
