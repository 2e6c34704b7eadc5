"""Who answers is decided by the question, the model's confidence, who is there, and whether the user was satisfied."""

import pytest
from pydantic import TypeAdapter

from khmer_assets.server import routing
from khmer_assets.server.messages import AnyMessage
from khmer_assets.server.routing import Conversations, Former, Guide, said
from tests.server.routers import CAPITAL, NUMBER, learned

MESSAGES = TypeAdapter(list[AnyMessage])


def conversation(*turns: str, system: str | None = None):
    first = [{"role": "system", "content": system}] if system else []
    roles = ["user", "assistant"] * len(turns)
    return MESSAGES.validate_python(
        first + [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
    )


def guide(*loaded: str, stronger: str = "") -> Guide:
    return Guide(learned(), lambda name: name in loaded, stronger)


def read(*turns: str):
    return said(learned(), conversation(*turns))


@pytest.mark.parametrize(
    ("turns", "question", "dissatisfied", "ever"),
    [
        ([CAPITAL], CAPITAL, False, False),
        (["ខុសហើយ"], "ខុសហើយ", False, False),  # of no answer
        ([NUMBER, "៥៤៣", "ខុសហើយ"], NUMBER, True, True),
        ([NUMBER, "៥៤៣", "That is not correct."], NUMBER, True, True),
        ([NUMBER, "៥៤៣", "ខុសហើយ", "៥៤៤", "នៅតែខុស"], NUMBER, True, True),
        ([NUMBER, "៥៤៣", "ខុសហើយ", "៥៤៤", CAPITAL], CAPITAL, False, True),
        ([NUMBER, "៥៤៣", "អរគុណច្រើន"], "អរគុណច្រើន", False, False),
    ],
)
def test_what_a_conversation_says(turns, question, dissatisfied, ever):
    found = read(*turns)
    assert (found.question, found.dissatisfied, found.ever) == (question, dissatisfied, ever)


def test_instructions_are_of_the_system_and_the_developer_and_no_turn_of_a_user():
    messages = [("system", "Answer in Khmer."), ("developer", "Be brief."), ("user", CAPITAL)]
    found = said(learned(), MESSAGES.validate_python([{"role": role, "content": text} for role, text in messages]))
    assert (found.instructions, found.question) == ("Answer in Khmer.\nBe brief.", CAPITAL)
    assert guide("khmer-numbers").first(read(NUMBER), None).name == "khmer-numbers"


def test_first_by_the_question():
    assert guide("khmer-numbers").first(read(NUMBER), None) == ("khmer-numbers", "question")
    assert guide("khmer-numbers").first(read(CAPITAL), None) == ("khmer", "question")
    assert guide().first(read(NUMBER), None) == ("khmer", "not_loaded")


def test_then_by_the_confidence():
    both = guide("khmer-numbers")
    assert both.second(read(NUMBER), 0.8) == ("khmer", "sure")
    assert both.second(read(NUMBER), 0.79) == ("khmer-numbers", "unsure")
    assert both.second(read(CAPITAL), 0.1) == ("khmer", "question")
    assert both.second(read(NUMBER), None) == ("khmer-numbers", "question")
    assert guide().second(read(NUMBER), 0.1) == ("khmer", "not_loaded")


@pytest.mark.parametrize(
    ("loaded", "stronger", "former", "name", "reason"),
    [
        (["khmer-numbers"], "", None, "khmer-numbers", "dissatisfied"),
        (["khmer-numbers"], "", "khmer-numbers", "khmer-numbers", "dissatisfied"),  # there is nobody else
        (["khmer-numbers"], "large", "khmer", "khmer-numbers", "dissatisfied"),
        (["khmer-numbers"], "large", "khmer-numbers", "large", "dissatisfied"),
        (["khmer-numbers"], "large", "large", "large", "dissatisfied"),
        ([], "large", "khmer", "large", "dissatisfied"),
        ([], "", "khmer", "khmer", "not_loaded"),
    ],
)
def test_who_is_not_satisfied_goes_one_step_further(loaded, stronger, former, name, reason):
    known = former and Former("1", former)
    assert guide(*loaded, stronger=stronger).first(read(NUMBER, "៥៤៣", "ខុសហើយ"), known) == (name, reason)


def test_who_gave_an_answer_is_remembered_for_its_key_and_not_for_ever(monkeypatch):
    monkeypatch.setattr(routing, "REMEMBERED", 2)
    memory, former = Conversations(), Former("1", "khmer")
    memory.remember("k1", conversation(NUMBER, system="ខ្លី"), "ប្រាំ ", former)
    asked = conversation(NUMBER, "ប្រាំ", "ខុសហើយ", system="ខ្លី")
    assert memory.former("k1", asked) == former
    assert memory.former("k2", asked) is None
    assert memory.former("k1", conversation(NUMBER, "ប្រាំ", "ខុសហើយ")) is None
    assert memory.former("k1", conversation(NUMBER)) is None
    for number in range(2):
        memory.remember("k1", conversation(str(number)), "ប្រាំ", former)
    assert memory.former("k1", asked) is None
