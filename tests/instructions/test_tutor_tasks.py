"""A tutor's tasks are made of good sentences, and their answers are right."""

import re

import polars as pl
import pytest

from khmer_assets.instructions.chats import NEW_CHAT, find_fault
from khmer_assets.instructions.grammar_errors import CONFUSED, RULES
from khmer_assets.instructions.tutor_tasks import (
    BY_RULES,
    TASKS,
    TutorTasks,
    by_rules,
    by_teachers,
    good_sentences,
    wording,
)
from khmer_assets.instructions.writing import Unfit
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.khmer.numbers import to_khmer_digits
from khmer_assets.khmer.script import dominant_script, script_shares
from khmer_assets.sample.composition import SAMPLE

NORMALIZATION = Normalization()
TEXTS = [(SAMPLE / name).read_text(encoding="utf-8") for name in ("everyday_sentences.txt", "english_readings.txt")]
GOOD = {sentence for sentence, _ in good_sentences(TEXTS, 10_000, 1)}


@pytest.fixture(scope="module")
def tasks() -> pl.DataFrame:
    return by_rules(TutorTasks(count=200), "tutor", TEXTS, NORMALIZATION, 1).collect()


def test_every_task_asks_about_a_sentence_in_the_next_line(tasks):
    assert tasks.schema == NEW_CHAT
    assert set(tasks["task"]) == set(BY_RULES) and set(tasks["language"]) == {"khm", "eng"}
    assert all(find_fault(chat) is None for chat in tasks["messages"].to_list())
    assert tasks["id"].is_unique().all()
    for task, (question, _) in tasks.select("task", "messages").iter_rows():
        prompt, _, sentence = question["content"].partition("\n")
        assert prompt in wording()["prompts"][task] and sentence


def test_a_correction_is_the_good_sentence_and_an_explanation_names_what_is_wrong(tasks):
    for task, (question, answer) in tasks.select("task", "messages").iter_rows():
        sentence, answer = question["content"].partition("\n")[2], answer["content"]
        if task == "correction":
            assert answer in GOOD and sentence not in GOOD
        elif task == "explanation":
            explanation, _, corrected = answer.partition(f"\n{wording()['answers']['corrected']}\n")
            assert corrected in GOOD and sentence not in GOOD
            quoted = re.findall("«(.+?)»", explanation)
            assert any(one in sentence for one in quoted) and any(one in corrected for one in quoted)
            khmer, _ = script_shares(re.sub("«.+?»", "", explanation))
            assert khmer > 0.9, "explanations are in Khmer"


def test_fluency_falls_with_the_errors(tasks):
    scores = [re.escape(wording()["answers"]["score"].format(score=to_khmer_digits(score))) for score in range(6)]
    found = set()
    for _, (question, answer) in tasks.filter(task="fluency").select("task", "messages").iter_rows():
        sentence, lines = question["content"].partition("\n")[2], answer["content"].splitlines()
        (score,) = [number for number, line in enumerate(scores) if re.fullmatch(line, lines[0])]
        assert (score == 5) == (sentence in GOOD) == (lines[1] == wording()["answers"]["correct"])
        found.add(score)
    assert found >= {0, 3, 4, 5}


def test_the_same_sentences_make_the_same_tasks_and_most_stay_when_texts_come(tasks):
    assert by_rules(TutorTasks(count=200), "tutor", TEXTS, NORMALIZATION, 1).collect().equals(tasks)
    before = set(good_sentences(TEXTS, 50, 1))
    assert len(before & set(good_sentences([*TEXTS, "ខ្ញុំចូលចិត្តរៀនភាសាខ្មែរ។ I like to learn Khmer."], 50, 1))) >= 48


def test_only_whole_plain_sentences_are_good():
    poor = ["គ្មានចុង", "ខ្លី។", "he begins small.", "Look: http://example.org!", "Two words.", "A1 B2 C3 D4 E5 F6."]
    assert good_sentences(poor, 10, 1) == []
    assert good_sentences(["ខ្ញុំទៅផ្សារនៅពេលព្រឹកជាមួយម្តាយ។"] * 3, 10, 1) == [("ខ្ញុំទៅផ្សារនៅពេលព្រឹកជាមួយម្តាយ។", "khm")]


def test_every_rule_and_every_confused_word_is_explained():
    assert set(wording()["explanations"]) == {*RULES["khm"], *RULES["eng"], "shuffled"}
    assert set(wording()["reasons"]) == {right for right, _ in CONFUSED}
    assert set(wording()["prompts"]) == set(TASKS)


def test_teachers_do_the_other_tasks_and_their_answers_are_looked_at():
    vocabulary, dialogue = by_teachers(TutorTasks(count=100), "tutor", TEXTS, 1)
    row = vocabulary.rows[0]
    made = vocabulary.chat(row, {"level": "B1", "reason": "ពាក្យទាំងនេះប្រើក្នុងជីវភាពប្រចាំថ្ងៃ។"})
    assert made["task"] == "vocabulary" and "B1" in made["messages"][1]["content"]
    assert made["messages"][0]["content"].endswith(row["sentence"])
    with pytest.raises(Unfit, match="other_language"):
        vocabulary.chat(row, {"level": "B1", "reason": "Everyday words."})
    row = dialogue.rows[0]
    lines = [{"speaker": "A", "text": row["sentence"]}, {"speaker": "B", "text": row["sentence"]}]
    assert dialogue.chat(row, {"lines": lines})["messages"][1]["content"].startswith(f"A: {row['sentence']}\nB: ")
    alike = [
        one["sentence"] for one in dialogue.rows if dominant_script(one["sentence"]) == dominant_script(row["sentence"])
    ]
    other = next(sentence for sentence in alike if sentence != row["sentence"])
    with pytest.raises(Unfit, match="sentence_missing"):
        dialogue.chat(row, {"lines": [{"speaker": "A", "text": other}, {"speaker": "B", "text": other}]})
    assert not {row["sentence"] for row in vocabulary.rows} & {row["sentence"] for row in dialogue.rows}
