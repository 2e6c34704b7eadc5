"""Dialogues keep their references: the last question leans on what was said before."""

import pytest

from khmer_assets.instructions.dialogues import Dialogues, dialogue_task, leans
from khmer_assets.instructions.writing import Ground, Unfit
from khmer_assets.khmer.script import Language

GROUND = Ground("kampot", "topic", "ខេត្តកំពត", "khm")
SYSTEM = "អ្នកជាមគ្គុទ្ទេសក៍ទេសចរណ៍។"
FIRST = {"user": "តើខេត្តកំពតល្បីខាងអ្វី?", "assistant": "ខេត្តកំពតល្បីខាងម្រេច។"}
LEANING = {"user": "តើវាដាំនៅឯណា?", "assistant": "គេដាំវានៅតាមជើងភ្នំ។"}
ALONE = {"user": "តើខេត្តកែបនៅឯណា?", "assistant": "ខេត្តកែបនៅជាប់សមុទ្រ។"}


def made(*turns: dict[str, str], system: str = SYSTEM) -> dict:
    task = dialogue_task(Dialogues(topics=["ខេត្តកំពត"]), [GROUND])
    return task.chat(task.rows[0], {"system": system, "turns": list(turns)})


def test_a_dialogue_has_a_system_message_and_turns():
    chat = made(FIRST, LEANING)
    assert [message["role"] for message in chat["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert chat["messages"][0]["content"] == SYSTEM and chat["language"] == "khm"


@pytest.mark.parametrize(
    ("turns", "rule"),
    [
        ((FIRST,), "too_few_turns"),
        ((FIRST, ALONE), "stands_alone"),
        (
            (
                FIRST,
                {"user": "And where does it grow in the province?", "assistant": "It grows on the hills near the sea."},
            ),
            "other_language",
        ),
    ],
)
def test_others_are_refused(turns, rule):
    with pytest.raises(Unfit) as refused:
        made(*turns)
    assert refused.value.args[0] == rule


@pytest.mark.parametrize(
    ("question", "language", "expected"),
    [
        ("តើគាត់មានអាយុប៉ុន្មាន?", "khm", True),
        ("ចុះនៅខេត្តកែបវិញ?", "khm", True),
        ("តើថ្ងៃនេះមេឃភ្លៀងទេ?", "khm", False),
        ("តើនៅឆ្នាំនេះស្រូវថ្លៃទេ?", "khm", False),
        ("How tall is it?", "eng", True),
        ("And their children?", "eng", True),
        ("What is the capital of Laos?", "eng", False),
        ("Is there a bank this week in Kampot?", "eng", False),
    ],
)
def test_a_question_leans_by_its_words(question: str, language: Language, expected):
    assert leans(question, language) is expected


def test_the_number_of_exchanges_is_asked_for_and_bounded():
    task = dialogue_task(Dialogues(topics=["x"], turns=5), [GROUND])
    assert task.rows[0]["turns"] == "5"
    assert task.template.answer_schema["properties"]["turns"]["maxItems"] == 5
    assert set(task.template.placeholders) <= set(task.rows[0])
