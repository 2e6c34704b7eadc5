"""Who is not satisfied is told from who asks, thanks or goes on, in wordings that were never learned."""

import pytest

from khmer_assets.foundation.yaml_files import read_yaml
from khmer_assets.khmer.script import dominant_script
from khmer_assets.router import dissatisfaction
from khmer_assets.router.dissatisfaction import EXAMPLES, examples, figures, learn
from tests.server.routers import QUESTIONS


def test_no_example_stands_twice_nor_in_both_parts():
    found = read_yaml(EXAMPLES)
    texts = [text for part in (found, found["held_out"]) for name in ("dissatisfied", "others") for text in part[name]]
    assert all(isinstance(text, str) for text in texts)
    assert len({text.strip(" .!?។").lower() for text in texts}) == len(texts)


@pytest.mark.parametrize("script", ["Khmr", "Latn"])
def test_held_out_wordings_are_told_in_both_languages(script):
    detector = learn([text for found in QUESTIONS.values() for text in found])
    told = [one for one in examples(held_out=True) if dominant_script(one[0]) == script]
    found = figures(detector, told)
    assert len(told) >= 30 and found["detector_accuracy"] >= 0.94, found


def test_questions_that_people_ask_are_no_complaints_and_do_not_teach_what_is_held_out():
    held_out = examples(held_out=True)
    other = learn([text for text, _ in held_out])
    assert (other.weights == learn([]).weights).all()
    questions = [(text, False) for found in QUESTIONS.values() for text in found]
    found = dissatisfaction.learn([text for text, _ in questions]).chances(
        [(t,) for t, _ in questions], _none(questions)
    )
    assert (found[:, 1] < 0.5).all()


def _none(texts):
    import numpy as np

    return np.empty((len(texts), 0))
