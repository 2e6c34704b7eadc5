"""What an evaluation set holds is found in documents, wherever it stands and however it is spaced."""

import json
import pickle

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.corpus.decontamination import (
    Decontamination,
    Evaluation,
    contamination_batch,
    evaluation_hashes,
    evaluation_sources,
    evaluation_texts,
)
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.sources.documents import SET_ASIDE
from khmer_assets.sources.reading import fingerprint
from khmer_assets.sources.rows import SourceError
from tests.corpus.conftest import documents

QUESTION = "តើអ្នកនេសាទចេញទូកទៅរកត្រីក្នុងបឹងធំនៅពេលណា ហើយគាត់ត្រឡប់មកផ្ទះវិញនៅពេលណា?"
OTHER = "កូនៗរៀននៅសាលាបឋមសិក្សា ហើយពេលល្ងាចជួយឪពុកជួសជុលសំណាញ់ដែលរហែកនៅក្រោមផ្ទះ។"
N = 50


def kept_so_far(texts: list[str]) -> pl.DataFrame:
    return (
        documents("s", texts).with_columns(pl.lit(None, kind).alias(name) for name, kind in SET_ASIDE.items()).collect()
    )


def judged(text: str, evaluation: Evaluation) -> dict[str, object]:
    (row,) = contamination_batch(kept_so_far([text]), evaluation).iter_rows(named=True)
    return row


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluation_hashes({"reading.jsonl": [QUESTION, "បាទ"], "other.jsonl": ["A" * 60]}, N)


def test_a_document_with_a_question_in_it_is_removed(evaluation):
    row = judged(f"{OTHER} {QUESTION} {OTHER}", evaluation)
    shared, runs = len(QUESTION.replace(" ", "")) - N + 1, len((OTHER + QUESTION + OTHER).replace(" ", "")) - N + 1
    assert row["rule"] == "contaminated"
    assert row["measure"] == pytest.approx(shared / runs)
    assert f"{shared} of {runs} runs of 50 characters are in reading.jsonl, from: {QUESTION[:20]}" in row["reason"]


def test_spaces_and_line_breaks_hide_nothing(evaluation):
    assert judged(QUESTION.replace("ត្រី", " ត្រី\n").replace("បឹង", " បឹង"), evaluation)["rule"] == "contaminated"


def test_one_shared_run_is_enough_and_a_shorter_one_is_not(evaluation):
    squeezed = QUESTION.replace(" ", "")
    assert judged(OTHER + squeezed[5 : 5 + N], evaluation)["rule"] == "contaminated"
    assert judged("ខ" + squeezed[5 : 4 + N] + "ខ" + OTHER, evaluation)["rule"] is None


def test_a_short_text_of_the_set_is_found_where_it_is_all_of_a_document(evaluation):
    assert judged(" បាទ ", evaluation)["rule"] == "contaminated"
    assert judged("បាទ ខ្ញុំទៅ", evaluation)["rule"] is None


def test_without_evaluation_sets_all_stay():
    assert judged(QUESTION, evaluation_hashes({}, N))["rule"] is None
    assert contamination_batch(kept_so_far([]), evaluation_hashes({}, N)).is_empty()


def test_what_is_looked_for_can_be_sent_to_another_process(evaluation):
    assert judged(QUESTION, pickle.loads(pickle.dumps(evaluation)))["rule"] == "contaminated"


def test_sets_are_read_as_sources_are_and_normalized(recipe, tmp_path):
    marked = QUESTION.replace("ត្រី", "\u200bត្រី")  # word marks, which the recipe removes
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": marked, "answer": "ព្រឹក", "id": 1}) + "\n")
    settings = Decontamination(evaluation_sets=[{"path": "set.jsonl", "text": ["question", "answer"]}])
    texts = evaluation_texts(settings, tmp_path, recipe.normalization)
    assert texts == {"set.jsonl": [QUESTION, "ព្រឹក"]}
    (source,) = evaluation_sources(settings)
    before = fingerprint(source, tmp_path)
    (tmp_path / "set.jsonl").write_text(json.dumps({"question": OTHER}) + "\n")
    assert fingerprint(source, tmp_path) != before


def test_a_set_that_cannot_be_read_is_an_error(recipe, tmp_path):
    def texts(**values: str) -> dict[str, list[str]]:
        return evaluation_texts(Decontamination(evaluation_sets=[values]), tmp_path, recipe.normalization)

    with pytest.raises(SourceError, match="nothing is at"):
        texts(path="absent.jsonl")
    (tmp_path / "broken.jsonl").write_text('{"text": "ព្រឹក"}\n{"text": \n')
    with pytest.raises(SourceError, match=r"evaluation_set_1: 1 rows cannot be read.*broken.jsonl, line 2"):
        texts(path="broken.jsonl")
    with pytest.raises(RecipeError, match=r"settings\.txt"):
        texts(path="broken.jsonl", txt="text")


@given(st.lists(st.text(max_size=120), max_size=4), st.lists(st.text(max_size=120), max_size=4))
def test_any_texts_are_judged_as_a_plain_search_would(texts, sets):
    n = 8
    judged = contamination_batch(kept_so_far(texts), evaluation_hashes({"set": sets}, n))

    def runs(text: str) -> set[str]:
        squeezed = "".join(text.split())
        return {squeezed[i : i + n] for i in range(max(1, len(squeezed) - n + 1))} - {""}

    held = set().union(*map(runs, sets))
    assert judged["rule"].is_not_null().to_list() == [bool(runs(text) & held) for text in texts]


def test_a_row_that_was_set_aside_before_keeps_its_reason(evaluation):
    row = kept_so_far([QUESTION]).with_columns(rule=pl.lit("symbols"), measure=0.9, reason=pl.lit("many signs"))
    assert contamination_batch(row, evaluation).equals(row)
