"""Faults in written Khmer that a program can see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.evaluation.writing import ABOUT, examples, faults, measures

GOOD = "ខ្ញុំរៀនភាសាខ្មែរនៅសាលារៀងរាល់ថ្ងៃ។"


def test_good_khmer_has_no_fault():
    assert set(faults(GOOD, "khm_Khmr").values()) == {1.0}
    assert set(faults(GOOD, "khm_Khmr")) == set(ABOUT)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("ស្រុក\u17d2 របស់ខ្ញុំ", "whole syllables"),
        ("\u17b6រដូវវស្សា", "whole syllables"),
        ("abc\u17c6", "whole syllables"),
        ("ក\u17d2រ\u17d2ត", "canonical"),
        ("ដើមឈើ\ufffdធំ", "undamaged"),
        ("ខ្ញុំទៅ ខ្ញុំទៅ ខ្ញុំទៅ ខ្ញុំទៅ ខ្ញុំទៅ", "without loops"),
        ("ខ្ញុំស្រឡាញ់ Москва", "own scripts"),
        ("ខ្ញុំទៅ家", "own scripts"),
    ],
)
def test_each_fault_is_seen(text, fault):
    assert faults(text, "khm_Khmr")[fault] == 0.0


def test_loops_are_long_and_cries_are_not():
    assert faults("ទេ! ទេ! ទេ!", "khm_Khmr")["without loops"] == 1.0
    assert faults("......", "khm_Khmr")["without loops"] == 1.0


def test_the_share_of_khmer_is_asked_of_khmer_answers_alone():
    assert faults("Hello there", "khm_Khmr")["Khmer where asked for"] == 0.0
    assert "Khmer where asked for" not in faults("Hello there", "eng_Latn")
    assert "Khmer where asked for" not in faults("១២៣", "khm_Khmr")


def test_measures_leave_out_what_was_not_answered():
    told = {one.metric: one.told() for one in measures({"1": (GOOD, "khm_Khmr"), "2": ("", "khm_Khmr")})}
    assert {one["items"] for one in told.values()} == {1}
    assert measures({"1": ("", "khm_Khmr")}) == []


def test_examples_are_shown():
    assert examples([(GOOD, "khm_Khmr"), ("ថ្ងៃ\ufffd", "khm_Khmr")]) == {"undamaged": ["ថ្ងៃ\ufffd"]}


@given(st.text())
def test_no_text_makes_it_fail(text):
    assert all(0 <= score <= 1 for score in faults(text, "khm_Khmr").values())
