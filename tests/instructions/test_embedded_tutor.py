"""The sample's tutor: chats in the words and forms of the typed client, right by how they are made."""

import pytest
from khmer_client import Correction, Dialogue, Explanation, Fluency, Vocabulary, tasks

from khmer_assets.instructions.chats import find_fault
from khmer_assets.instructions.embedded_tutor import EmbeddedTutor, Task, system_prompt, tutor_chats
from khmer_assets.khmer.normalization import Normalization

FORMS = {
    "fluency": Fluency,
    "grammar": Correction,
    "explanation": Explanation,
    "vocabulary": Vocabulary,
    "dialogue": Dialogue,
}
SETTINGS = EmbeddedTutor(kind="embedded_tutor", chats=100)


@pytest.fixture(scope="module")
def chats():
    frame = tutor_chats(SETTINGS, "tutor", Normalization(), seed=1).collect()
    assert frame["id"].is_unique().all() and not [m for m in frame["messages"].to_list() if find_fault(m)]
    return {
        task: [(m[0]["content"], m[1]["content"], FORMS[task].model_validate_json(m[2]["content"])) for m in rows]
        for task, rows in frame.group_by("task").agg("messages").iter_rows()
    }


@pytest.mark.parametrize(
    ("task", "asked", "values"),
    [
        ("fluency", tasks.fluency("ក", "km"), {"language": "Khmer"}),
        ("vocabulary", tasks.vocabulary("ក", "en"), {"language": "English"}),
        ("grammar", tasks.grammar("ក", "km"), {"language": "Khmer"}),
        ("explanation", tasks.error("ក", "km"), {"language": "Khmer"}),
        ("dialogue", tasks.dialogue("ក", "en", "B1", 4), {"language": "English", "level": "B1", "lines": 4}),
    ],
)
def test_the_adapter_learns_exactly_what_the_client_asks(task: Task, asked: tasks.Task, values):
    assert {"role": "system", "content": system_prompt(task, **values)} == asked.messages[0]
    assert asked.messages[1] == {"role": "user", "content": "ក"}


def test_all_five_tasks_have_chats_in_their_shares_and_all_answers_have_their_forms(chats):
    assert {task: len(rows) for task, rows in chats.items()} == {
        "grammar": 30, "explanation": 20, "fluency": 20, "vocabulary": 20, "dialogue": 10
    }  # fmt: skip


def test_a_correction_is_the_text_with_its_changes_made(chats):
    for _, text, answer in chats["grammar"]:
        made = text
        for change in answer.changes:
            assert change.before in text and change.before != change.after and change.reason
            made = made.replace(change.before, change.after, 1)
        assert sorted(made) == sorted(answer.corrected), "as many of the same characters, wherever it is replaced"
        assert bool(answer.changes) == (text != answer.corrected)
    assert any(not answer.changes for _, _, answer in chats["grammar"]), "what is right stays as it is"


def test_the_score_falls_with_the_errors(chats):
    for _, _, answer in chats["fluency"]:
        assert (answer.score == 5) == (not answer.problems)
        assert answer.score <= 5 - len(answer.problems)
    assert {answer.score for _, _, answer in chats["fluency"]} >= {1, 4, 5}


def test_words_are_those_of_the_text_and_their_meanings_in_the_language_asked_for(chats):
    languages = set()
    for asked, text, answer in chats["vocabulary"]:
        assert 1 <= len(answer.words) <= 2
        for word in answer.words:
            assert word.word in text
            assert word.meaning.isascii() == ("in English" in asked)
        languages.add("in English" in asked)
    assert languages == {True, False}


def test_a_dialogue_is_about_its_topic_and_has_the_lines_asked_for(chats):
    for asked, topic, answer in chats["dialogue"]:
        topic = topic.removeprefix("about ").removeprefix("អំពី")
        assert f"of {len(answer.lines)} lines" in asked
        assert topic in answer.title and any(topic in line.text for line in answer.lines)
        assert [line.speaker for line in answer.lines[:2]] == [line.speaker for line in answer.lines[2:]]


def test_an_explanation_gives_the_right_sentence(chats):
    for _, text, answer in chats["explanation"]:
        assert answer.rule and answer.explanation.endswith("។") and answer.examples != [text]
