"""What counts as a failure: held-out chats, prompts of the evaluation and, where the recipe allows, the audit log."""

import json

import polars as pl
import pytest

from khmer_assets.failures import find
from khmer_assets.failures.find import Failures, of_record, read_records
from resources.payload import PayloadRun
from tests.failures.small import FINETUNING, save_chats, save_evaluation
from tests.tiny_model import save_tiny_model

ASKED = [{"role": "user", "content": "តើឆ្កែស៊ីអ្វី?"}]
COMPLAINT = [*ASKED, {"role": "assistant", "content": "ស្មៅ។"}, {"role": "user", "content": "ខុសហើយ"}]


def record(**fields):
    return {"id": "1f", "outcome": "completed", "messages": ASKED, "output": "ស្មៅ។", **fields}


def test_an_unsure_answer_is_a_failure_and_a_sure_one_is_not():
    row = of_record(record(confidence=0.31), max_confidence=0.8)
    assert row is not None and row["origin"] == "unsure" and row["prompt"] == ASKED[0]["content"]
    assert row["answer"] == "ស្មៅ។" and row["expected"] is None and row["reason"] == "confidence 0.31"
    assert of_record(record(confidence=0.8), max_confidence=0.8) is None
    assert of_record(record(), max_confidence=0.8) is None, "nobody has told how sure it was"
    assert of_record(record(confidence=0.1, outcome="failed"), max_confidence=0.8) is None
    odd = of_record(record(confidence=0.1, id=7, output={"a": 1}), max_confidence=0.8)
    assert odd is not None and pl.DataFrame([odd], schema=find.FAILURE)["id"].to_list() == ["7"]


def test_of_who_is_not_satisfied_the_answer_before_the_complaint_has_failed():
    row = of_record(record(messages=COMPLAINT, dissatisfied=True, confidence=0.9), max_confidence=0.8)
    assert row is not None and row["origin"] == "dissatisfied"
    assert (row["prompt"], row["answer"], row["reason"]) == (ASKED[0]["content"], "ស្មៅ។", "ខុសហើយ")
    assert row["messages"] == ASKED, "the complaint is no question"
    assert of_record(record(dissatisfied=True), max_confidence=0.8) is None, "about no answer that is there"


@pytest.mark.parametrize(
    "content",
    ["", "null", "[1]", '{"outcome": "completed", "messages": [1]}', '{"outcome": "completed", "messages": [{}]}',
     json.dumps(record(confidence="high")), json.dumps({"outcome": "completed", "messages": [{"role": "user"}]}),
     "[" * 100_000, "\x00", json.dumps(record(confidence=0.1, id=7, output={"a": 1}, messages=[*ASKED, None]))],
)  # fmt: skip
def test_a_record_that_is_none_is_counted_and_the_others_are_read(tmp_path, content):
    day = tmp_path / "2026-01-02"
    day.mkdir()
    (day / "chat_completions_1_20260102T000001.000000Z.json").write_text(content)
    (day / "chat_completions_2_20260102T000002.000000Z.json").write_text(json.dumps(record(confidence=0.1)))
    (day / "chat_completions_3_20260102T000003.000000Z.json").write_bytes(b"\xff\xfe")
    rows, unreadable = read_records(tmp_path, 0.8)
    assert [row["id"] for row in rows] == ["1f"] and unreadable == 2
    assert pl.DataFrame(rows, schema=find.FAILURE).height == 1


def test_the_newest_records_are_read_first_and_not_more_than_the_most(tmp_path, monkeypatch):
    for number, day in enumerate(("2026-01-02", "2026-01-03")):
        (tmp_path / day).mkdir()
        for second in (1, 2):
            name = f"chat_completions_{number}_{day.replace('-', '')}T00000{second}.000000Z.json"
            (tmp_path / day / name).write_text(json.dumps(record(id=f"{number}{second}", confidence=0.1)))
    monkeypatch.setattr(find, "MOST_RECORDS", 3)
    assert [row["id"] for row in read_records(tmp_path, 0.8)[0]] == ["12", "11", "02"]


@pytest.mark.slow
@pytest.mark.parametrize("consent", [True, False])
def test_all_that_failed_is_one_table_and_users_are_in_it_only_with_consent(tmp_path, consent):
    chats = save_chats(tmp_path / "chats")
    evaluation = save_evaluation(tmp_path / "evaluation")
    (tmp_path / "audit" / "2026-01-02").mkdir(parents=True)
    (tmp_path / "audit" / "2026-01-02" / "chat_1_20260102T000001.json").write_text(json.dumps(record(confidence=0.1)))
    spec = find.Spec(
        model=save_tiny_model(tmp_path / "model"),
        chats=chats,
        evaluation=evaluation,
        records=tmp_path / "audit" if consent else None,
        settings=Failures(question="?", min_answer_accuracy=0, finetuning=FINETUNING, consent=consent),
        max_new_tokens=4,
        context_length=64,
    )
    run = PayloadRun(tmp_path / "run")
    figures = find.main(spec, run)
    rows = pl.read_parquet(run.output / find.ROWS)
    assert rows.schema == find.FAILURE and rows["id"].is_unique().all()
    assert set(rows["origin"]) == {"chats", "prompts"} | ({"unsure"} if consent else set())
    held_out = pl.read_parquet(chats / "data.parquet").filter(pl.col("split") != "train")
    assert figures["asked"] == held_out.height == rows.filter(origin="chats").height, "a random model is never right"
    assert rows.filter(origin="prompts")["reason"].to_list() == ["lacks '៧'"]
    assert ("not read" in figures["conversations"]) != consent
