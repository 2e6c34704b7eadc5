"""A router is judged on chats that it has not seen, and gives the model's answer where nobody's is better."""

import numpy as np
import pytest

from khmer_assets.router.classifier import fit
from khmer_assets.router.learning import Asked, TooFew, judged, learn, scaling_of

SURE, UNSURE = [-0.01] * 4, [-1.0] * 4


def number(value: int, right: bool = True) -> Asked:
    return Asked(f"សូមសរសេរលេខ {value} ជាអក្សរ", "numbers", False, {"numbers": right}, UNSURE)


def other(value: int, right: bool = True) -> Asked:
    words = ("មេឃ", "ទឹក", "ដី", "ផ្ទះ", "ស្រូវ", "ត្រី")
    question = f"តើ{words[value % 6]}របស់ភូមិ{words[value // 6 % 6]}មានពណ៌អ្វី?"
    return Asked(question, None, right, {"numbers": False}, SURE if right else UNSURE)


CHATS = [number(place, place % 10 > 0) for place in range(40)] + [other(place, place % 5 > 0) for place in range(60)]


@pytest.mark.parametrize(
    ("model", "adapters", "own", "best", "well", "badly"),
    [
        (True, {"a": True}, "a", None, [None, "a"], ["b"]),
        (False, {"a": True}, "a", "a", ["a"], [None, "b"]),
        (False, {"a": False}, "b", "b", ["b"], [None, "a"]),
        (False, {"a": False}, None, None, [None], ["a"]),
        (False, {"a": True}, None, "a", ["a"], [None]),
    ],
)
def test_who_should_answer(model, adapters, own, best, well, badly):
    asked = Asked("?", own, model, {"a": False, "b": False} | adapters, [])
    assert asked.best() == best
    assert all(asked.is_well_routed(one) for one in well) and not any(asked.is_well_routed(one) for one in badly)


@pytest.fixture(scope="module")
def router():
    return learn(CHATS, ["numbers"], "b" * 16, 0.8, seed=1)


def test_its_figures_and_that_it_gains(router):
    found = router.about.figures
    assert found["never"] == pytest.approx(0.48) and found["oracle"] == pytest.approx(0.84)
    assert found["streamed"] == found["whole"] == found["router"] == found["oracle"]
    assert found["routing_accuracy_streamed"] == 1 and found["ece"] <= 0.1 and found["chats"] == 100
    assert router.about.gains and router.about.base == "b" * 16
    assert router.domain("", "សូមសរសេរលេខ ៩៧៥ ជាអក្សរ") == "numbers"
    assert router.domain("", "តើមេឃមានពណ៌អ្វី?") is None
    assert router.about.scaling.confidence(SURE) >= 0.8 > router.about.scaling.confidence(UNSURE)


def test_instructions_tell_the_domain_where_the_question_does_not_and_others_change_nothing():
    instructions = "Correct the text. Answer with JSON alone."
    questions = [other(place).question for place in range(60)]
    plain = [Asked(question, None, True, {"tutor": False}, SURE) for question in questions]
    corrections = [Asked(question, "tutor", False, {"tutor": True}, UNSURE, instructions) for question in questions]
    router = learn([*plain, *corrections], ["tutor"], "b" * 16, 0.8, seed=1)
    assert router.about.figures["routing_accuracy_streamed"] == 1
    question = "តើផ្កានេះមានពណ៌អ្វី?"
    assert router.domain(instructions, question) == "tutor"
    assert router.domain("Correct the spelling of the text. Answer with JSON alone.", question) == "tutor"
    for elsewhere in ("", "អ្នកជាជំនួយការដ៏មានប្រយោជន៍។", "You are a helpful assistant of a library in Phnom Penh."):
        assert router.domain(elsewhere, question) is None


def test_the_same_chats_give_the_same_router(router):
    again = learn(CHATS, ["numbers"], "b" * 16, 0.8, seed=1)
    assert router.about == again.about and np.array_equal(router.weights, again.weights)


def test_figures_are_of_chats_that_were_not_learned_from():
    """Where questions tell nothing of who is right no router can gain, but one that has seen them would."""
    generator = np.random.default_rng(0)
    chats = []
    for right in generator.random(60) < 0.5:
        question = "".join(chr(0x1780 + int(sign)) for sign in generator.integers(0, 33, 12))
        chats.append(Asked(question, None if right else "a", bool(right), {"a": not right}, UNSURE))
    assert judged(chats, ["a"], 0.8, 1)["streamed"] < 0.7


def test_too_few_chats_are_refused_and_answers_without_tokens_left_out():
    with pytest.raises(TooFew, match="39 held-out chats are too few"):
        learn(CHATS[:39], ["numbers"], "b" * 16, 0.8, seed=1)
    silent = [Asked("?", None, False, {"numbers": False}, []) for _ in range(60)]
    with pytest.raises(TooFew, match="calibrate"):
        scaling_of(silent)
    assert scaling_of([*CHATS, *silent]) == scaling_of(CHATS)


def test_a_figure_beside_the_text_counts():
    texts, figures = ["ក", "ខ"] * 20, np.array([[0.5], [-0.5]] * 20)
    found = fit([["ស្រូវ"]] * 40, figures, np.array([0, 1] * 20), 2, 30.0)
    assert (found.chances([["ស្រូវ"]] * 40, figures).argmax(1) == [0, 1] * 20).all() and len(texts) == 40
