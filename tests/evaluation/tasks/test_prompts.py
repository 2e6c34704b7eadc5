"""Checks of answers that a program can make."""

import pytest
from pydantic import ValidationError

from khmer_assets.evaluation.tasks.prompts import Prompt, failures, measure


@pytest.mark.parametrize(
    ("checks", "good", "bad"),
    [
        ({"language": "khm_Khmr"}, "ភ្នំពេញ", "Phnom Penh"),
        ({"contains": ["Phnom Penh"]}, "It is phnom penh.", "It is Siem Reap."),
        ({"one_of": ["បាទ", "ចាស"]}, "ចាស!", "ទេ"),
        ({"lacks": ["ទេ"]}, "បាទ", "ទេ"),
        ({"digits": "khmer"}, "៧", "7"),
        ({"digits": "latin"}, "7", "៧"),
        ({"min_characters": 3}, "abcd", "ab"),
        ({"max_characters": 3}, "abc", "abcd"),
    ],
)
def test_each_check(checks, good, bad):
    prompt = Prompt(prompt="?", **checks)
    assert not failures(prompt, good)
    assert len(failures(prompt, bad)) == 1


def test_a_text_alone_is_a_prompt_without_checks():
    prompt = Prompt.model_validate("សួស្តី")
    assert not prompt.has_checks and measure([prompt], ["x"]) is None


def test_the_share_of_prompts_that_pass():
    prompts = [Prompt(prompt="a", contains=["x"]), Prompt(prompt="b", contains=["y"]), Prompt(prompt="c")]
    assert measure(prompts, ["x", "x", "x"]).told()["value"] == 50


def test_a_misspelled_check_is_a_mistake():
    with pytest.raises(ValidationError):
        Prompt.model_validate({"prompt": "a", "contain": ["x"]})
