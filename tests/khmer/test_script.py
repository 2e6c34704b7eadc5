"""Khmer and Latin are told apart by their letters."""

from khmer_assets.khmer.script import dominant_script, script_shares


def test_marks_count_as_khmer_and_digits_do_not_count():
    assert script_shares("ខ្ញុំ ១២ 34 !") == (1.0, 0.0)


def test_accented_letters_are_latin():
    assert script_shares("café ក") == (0.2, 0.8)


def test_a_text_without_letters_has_no_script():
    assert script_shares("123 ។") == (0.0, 0.0)
    assert dominant_script("") is None


def test_the_script_with_more_letters_dominates():
    assert dominant_script("ភ្នំពេញ is the capital city") == "Latn"
    assert dominant_script("សាលារៀននៅ Takeo") == "Khmr"
