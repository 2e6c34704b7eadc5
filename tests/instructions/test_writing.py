"""What teachers write about, and what becomes of their answers."""

import polars as pl

from khmer_assets.instructions.chats import Message
from khmer_assets.instructions.writing import GROUND, Assignment, Ground, Unfit, Written, grounds, made
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.sources.documents import SET_ASIDE, content_hash
from khmer_assets.teachers.asking import Answer
from khmer_assets.teachers.settings import Template

TEMPLATE = Template(text="{about}", answer_schema={"type": "object", "properties": {"text": {"type": "string"}}})


def mixture(texts: list[str]) -> pl.LazyFrame:
    """A training mixture, of which the last text is held out."""
    splits = ["train"] * (len(texts) - 1) + ["validation"]
    rows = [
        {"id": f"s:{n}", "text": t, "content_hash": content_hash(t), "split": s}
        for n, (t, s) in enumerate(zip(texts, splits, strict=True))
    ]
    return pl.LazyFrame(rows)


def test_as_many_documents_are_drawn_as_asked_for_and_none_that_is_held_out():
    texts = [f"ឯកសារទី {number}" for number in range(40)]
    drawn = {ground.id for ground in grounds(Written(documents=10), mixture(texts), 1)}
    assert len(drawn) == 10 and "s:39" not in drawn
    more = {ground.id for ground in grounds(Written(documents=10), mixture([*texts[:-1], "new", texts[-1]]), 1)}
    assert len(drawn & more) >= 9
    assert {ground.id for ground in grounds(Written(documents=99), mixture(texts), 1)} == {f"s:{n}" for n in range(39)}


def test_a_document_is_cut_and_a_topic_has_its_language():
    topics = grounds(Written(topics=["ស្រូវ", "rice"]), None, 1)
    (long,) = grounds(Written(documents=1), mixture(["ក" * 9_000, "x"]), 1)
    topic, english = topics
    assert len(long.text) == GROUND
    assert topic == Ground(topic.id, "topic", "ស្រូវ", "khm") and english.language == "eng"


def test_every_answer_becomes_a_chat_or_a_row_that_says_why_not():
    def chat(row, value):
        if value["text"] == "bad":
            raise Unfit("too_few_sentences", 1, "one sentence")
        return {
            "messages": [Message(role="user", content=row["about"]), Message(role="assistant", content=value["text"])]
        }

    rows = [{"id": str(n), "about": "ស្រូវ"} for n in range(3)]
    answers = [
        Answer("0", "t", {"text": "ល្អ​ណាស់"}, None, None, None, 1, 1),
        Answer("1", "t", {"text": "bad"}, None, None, None, 1, 1),
        Answer("2", "t", None, "no_json", 3.0, "no JSON", 1, 1),
    ]
    found = made(
        Assignment(TEMPLATE, rows, chat), "mine", "question", answers, Normalization(zero_width_space="remove")
    )
    kept, unfit, refused = found.collect().to_dicts()
    assert (kept["id"], kept["source"], kept["category"], kept["rule"]) == ("mine-0", "mine", "question", None)
    assert kept["messages"][1]["content"] == "ល្អណាស់", "texts are normalized"
    assert [unfit[name] for name in SET_ASIDE] == ["too_few_sentences", 1.0, "one sentence"]
    assert [refused[name] for name in SET_ASIDE] == ["no_json", 3.0, "no JSON"]
