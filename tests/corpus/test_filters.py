"""Each filter removes what it is for, with its measure and a sentence, and keeps ordinary text."""

import polars as pl
import pytest

from khmer_assets.corpus.filters import filter_documents
from tests.corpus.conftest import documents

KHMER = "នៅព្រឹកព្រលឹម អ្នកនេសាទចេញទូកទៅរកត្រីក្នុងបឹងធំ ហើយត្រឡប់មកវិញមុនថ្ងៃត្រង់។"
ENGLISH = "The fishermen leave before dawn and come back with the morning's catch before noon."


def filtered(recipe, text: str, **limits: object) -> dict[str, object]:
    settings = recipe.filters.model_copy(update=limits)
    (row,) = filter_documents(documents("s", [text]), settings).collect().iter_rows(named=True)
    return row


@pytest.mark.parametrize(("text", "language"), [(KHMER, "khm"), (ENGLISH, "eng"), (f"{KHMER} Tonle Sap", "khm")])
def test_ordinary_text_stays_with_its_language(recipe, text, language):
    row = filtered(recipe, text)
    assert (row["rule"], row["reason"], row["language"]) == (None, None, language)


@pytest.mark.parametrize(
    ("rule", "text", "limits"),
    [
        ("too_short", "ខ្លី", {}),
        ("too_long", KHMER, {"max_characters": 20}),
        ("language", "Les enfants du village vont tous les jours à l'école au bord de la rivière.", {}),
        ("language", ENGLISH, {"languages": ["khm"]}),
        ("language_score", f"{KHMER} {ENGLISH[:40]}", {"min_language_score": 0.99}),
        ("symbols", KHMER[:12] + " *** === +++ ^^^ ~~~ ||| ###", {}),
        ("duplicate_lines", "\n".join([KHMER] * 5), {}),
        ("duplicate_ngrams", KHMER * 5, {}),
    ],
)
def test_a_rule_removes_what_it_is_for_and_keeps_the_row(recipe, rule, text, limits):
    row = filtered(recipe, text, **limits)
    assert row["rule"] == rule
    assert isinstance(row["measure"], float)
    assert row["reason"]
    assert row["text"] == text


def test_the_measure_of_repeated_lines_is_their_share(recipe):
    assert filtered(recipe, "\n".join([KHMER] * 5))["measure"] == pytest.approx(0.8)


def test_no_documents_give_no_rows(recipe):
    assert filter_documents(documents("s", []), recipe.filters).collect().is_empty()


def test_a_text_of_spaces_and_signs_makes_nothing_fail(recipe):
    rows = filter_documents(documents("s", ["", " \n ", "។។។", "1"]), recipe.filters).collect()
    assert rows["rule"].null_count() == 0
    assert not rows.select(pl.col("measure").is_nan().any()).item()
