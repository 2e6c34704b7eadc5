"""Each filter removes what it is for, with its measure and a sentence, and keeps what only comes near it."""

import pickle

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.corpus.filters import Filters, filter_batch
from khmer_assets.corpus.page_rules import EnglishPages, KhmerPages
from khmer_assets.corpus.personal_data import mask
from khmer_assets.foundation.settings import RecipeError
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.sources.documents import DOCUMENT, SET_ASIDE, content_hash
from tests.corpus.conftest import documents

KHMER = "នៅព្រឹកព្រលឹម អ្នកនេសាទចេញទូកទៅរកត្រីក្នុងបឹងធំ ហើយត្រឡប់មកវិញមុនថ្ងៃត្រង់។"
ENGLISH = "The fishermen leave before dawn and come back with the morning's catch before noon."
THAI = "ชาวประมงออกเรือแต่เช้ามืดเพื่อไปหาปลา"

KHMER_PAGE = """នៅព្រឹកព្រលឹម អ្នកនេសាទចេញទូកទៅរកត្រីក្នុងបឹងធំ ហើយត្រឡប់មកវិញមុនថ្ងៃត្រង់។
ប្រពន្ធរបស់គាត់យកត្រីទៅលក់នៅផ្សារក្បែរភូមិ ដែលមានមនុស្សមកពីគ្រប់ទិសទី។
ត្រីដែលលក់មិនអស់ គេយកទៅធ្វើប្រហុក និងផ្អក ទុកសម្រាប់ហូបពេញមួយឆ្នាំ។
កូនៗរៀននៅសាលាបឋមសិក្សា ហើយពេលល្ងាចជួយឪពុកជួសជុលសំណាញ់ដែលរហែក។
ជីវិតនេះមិនងាយស្រួលទេ ប៉ុន្តែគ្រួសារនេះរស់នៅដោយសុភមង្គល។"""
ENGLISH_PAGE = """The fishermen of the lake leave before dawn and come back with the morning's catch before noon.
Their wives sell most of it at a market that people from all of the villages visit.
What nobody buys is salted and kept, so that there will be enough to eat in the dry months.
Children go to school, and in the evening they help to mend those nets that have been torn.
It is not an easy life, but hardly anyone in this village would want to live in a town."""

PAGES = Filters(
    languages=["khm", "eng"], min_language_score=0.3, min_characters=12, max_characters=100_000, max_symbol_ratio=0.45
)


def filtered(text: str, settings: Filters = PAGES) -> dict[str, object]:
    (row,) = filter_batch(documents("s", [text]).collect(), settings).iter_rows(named=True)
    return row


def limited(text: str, **limits: object) -> dict[str, object]:
    """Judged with other limits on pages, both Khmer and English."""
    changes = {name: getattr(PAGES, name).model_copy(update=limits) for name in ("khmer_pages", "english_pages")}
    return filtered(text, PAGES.model_copy(update=changes))


@pytest.mark.parametrize(
    ("text", "language"), [(KHMER_PAGE, "khm"), (ENGLISH_PAGE, "eng"), (f"{KHMER_PAGE} Tonle Sap", "khm")]
)
def test_ordinary_text_stays_with_its_language(text, language):
    row = filtered(text)
    assert (row["rule"], row["reason"], row["language"], row["text"]) == (None, None, language, text)


@pytest.mark.parametrize(
    ("rule", "removed", "near_miss"),
    [
        ("too_short", "ខ្លី", KHMER),
        ("foreign_script", f"{KHMER} {THAI}", f"{KHMER_PAGE} {THAI}"),
        ("language", "Les enfants du village vont tous les jours à l'école au bord de la rivière.", ENGLISH),
        ("symbols", KHMER[:12] + " *** === +++ ^^^ ~~~ ||| ###", KHMER[:40] + " *** +++"),
        ("music", "Am  F  C  G\n" + KHMER, "A C G\n" + KHMER_PAGE.replace(" ", "\n")),
        ("music", "♪ " + KHMER, KHMER),
        ("music", "[Verse 1]\n" + KHMER + "\nChorus:\n" + KHMER, "A verse of the poem: 1\n" + ENGLISH),
        ("music", "ចម្រៀង៖ បឹងធំ\n" + KHMER, "គាត់ចូលចិត្តស្តាប់ចម្រៀង៖ " + KHMER),
        ("offensive", "អាឆ្កែ! " + KHMER[:30], KHMER_PAGE + "អាឆ្កែ"),
        ("offensive", "You stupid Bastard, go away from here now.", "The bastardized spelling is not the one to use."),
    ],
)
def test_a_rule_on_documents_removes_what_it_is_for(recipe, rule, removed, near_miss):
    settings = recipe.filters
    assert _is_removed(filtered(removed, settings), rule, removed)
    assert filtered(near_miss, settings)["rule"] is None


@pytest.mark.parametrize(
    ("rule", "page", "limits", "near_limits"),
    [
        ("few_words", KHMER, {}, {"min_words": 5}),
        ("many_words", KHMER_PAGE, {"max_words": 60}, {"max_words": 100}),
        ("duplicate_lines", "\n".join([KHMER_PAGE] * 3), {"max_duplicate_lines": 0.66}, {"max_duplicate_lines": 0.67}),
        ("repeated_phrase", KHMER_PAGE + " ត្រីធំ" * 60, {"max_top_ngrams": {2: 0.3}}, {"max_top_ngrams": {2: 0.9}}),
        ("duplicate_ngrams", KHMER_PAGE.replace("\n", " ") * 2, {}, {"max_duplicate_ngrams": {5: 0.51}}),
        ("punctuated_lines", ENGLISH_PAGE.replace(".", ""), {}, {"min_punctuated_lines": 0}),
        (
            "duplicate_line_characters",
            KHMER_PAGE + "\n" + KHMER_PAGE.split("\n")[0],
            {},
            {"max_duplicate_line_characters": 0.3},
        ),
        ("line_breaks", KHMER_PAGE.replace(" ", "\n\n\n\n\n\n\n\n"), {}, {"max_line_breaks": 1}),
        ("word_length", ENGLISH_PAGE, {"max_word_length": 4}, {"max_word_length": 7}),
        ("word_length", KHMER_PAGE, {"min_word_length": 6}, {"min_word_length": 3}),
        ("hashes", KHMER_PAGE + " #" * 20, {}, {"max_hashes": 0.3}),
        ("ellipses", KHMER_PAGE + " ទៅ… មក…" * 8, {}, {"max_ellipses": 0.3}),
        ("bullet_lines", "- " + KHMER_PAGE.replace("\n", "\n• "), {}, {"max_bullet_lines": 1}),
        ("ellipsis_lines", KHMER_PAGE.replace("។", "..."), {}, {"max_ellipsis_lines": 1}),
        ("alphabetic_words", KHMER_PAGE + " 1 2 3 4 5 6 7 8 9", {}, {"min_alphabetic_words": 0.7}),
        ("stop_words", ENGLISH_PAGE, {"min_stop_words": 9}, {"min_stop_words": 7}),
    ],
)  # fmt: skip
def test_a_rule_on_pages_removes_what_is_beyond_its_limit(rule, page, limits, near_limits):
    loose = {"max_duplicate_line_characters": 1.0, "max_duplicate_ngrams": {}, "max_top_ngrams": {}}
    if rule in ("duplicate_lines", "repeated_phrase", "duplicate_line_characters"):
        limits = loose | {"max_duplicate_line_characters": 0.1} | limits
    assert _is_removed(limited(page, **limits), rule, page)
    assert limited(page, **(limits | near_limits))["rule"] != rule


def _is_removed(row: dict[str, object], rule: str, text: str) -> bool:
    assert (row["rule"], row["text"]) == (rule, text), row["reason"]
    return isinstance(row["measure"], float) and bool(row["reason"])


def test_a_document_of_another_language_than_wanted_is_removed(recipe):
    assert filtered(ENGLISH_PAGE, PAGES.model_copy(update={"languages": ["khm"]}))["rule"] == "language"
    row = filtered(f"{KHMER} {ENGLISH[:40]}", recipe.filters.model_copy(update={"min_language_score": 0.99}))
    assert row["rule"] == "language_score"


def test_the_measure_is_the_share_that_the_reason_names():
    row = limited("\n".join([KHMER_PAGE] * 5), max_duplicate_lines=0.7)
    assert row["measure"] == pytest.approx(0.8)
    assert row["reason"] == "0.8 of the lines repeat, at most 0.7 may"


def test_short_texts_are_removed_or_not_judged_as_pages():
    refrain = "\n".join(["បងស្រលាញ់អូន"] * 5)
    assert filtered(refrain)["rule"] == "few_words"
    assert filtered(refrain, PAGES.model_copy(update={"short_texts": "keep"}))["rule"] is None


def test_the_defaults_for_khmer_are_those_of_fineweb2():
    limits = KhmerPages()
    assert (limits.max_duplicate_lines, limits.max_line_breaks, limits.min_alphabetic_words) == (0.917, 0.361, 0.905)
    assert (limits.max_top_ngrams[2], limits.max_duplicate_ngrams[10], len(limits.stop_words)) == (0.594, 0.109, 14)
    assert EnglishPages().max_top_ngrams == {2: 0.2, 3: 0.18, 4: 0.16}


def test_a_text_with_masked_data_has_a_new_hash():
    row = filtered(KHMER_PAGE + " ០១២ ៣៤៥ ៦៧៨")
    assert row["text"] == KHMER_PAGE + " <phone>"
    assert row["content_hash"] == content_hash(row["text"])
    assert row["rule"] is None


def test_rows_keep_their_order_and_columns():
    batch = documents("s", [KHMER_PAGE, "ខ្លី", ENGLISH_PAGE, THAI, KHMER_PAGE]).collect()
    judged = filter_batch(batch, PAGES)
    assert judged["rule"].to_list() == [None, "too_short", None, "foreign_script", None]
    assert judged.schema == pl.Schema({**DOCUMENT, **SET_ASIDE})
    assert judged["id"].to_list() == batch["id"].to_list()


def test_no_documents_give_no_rows():
    judged = filter_batch(documents("s", []).collect(), PAGES)
    assert judged.is_empty()
    assert judged.schema == pl.Schema({**DOCUMENT, **SET_ASIDE})


def test_the_list_of_offensive_words_is_read_with_the_recipe(tmp_path):
    recipe = Recipe.load(SAMPLE_RECIPE)
    assert "អាឆ្កែ" in recipe.filters.offensive_words
    assert pickle.loads(pickle.dumps(recipe.filters)) == recipe.filters
    assert Filters.model_validate(recipe.filters.model_dump(mode="json")) == recipe.filters
    copy = tmp_path / "recipe.yaml"
    text = SAMPLE_RECIPE.read_text().replace("../catalogues/sample.yaml", str(recipe.catalogue))
    copy.write_text(text.replace("\nfilters:", "\nfilters:\n  offensive_words: list.txt"))
    (tmp_path / "list.txt").write_text("# own list\nអាក្រក់\n")
    assert Recipe.load(copy).filters.offensive_words == ("អាក្រក់",)
    (tmp_path / "list.txt").unlink()
    with pytest.raises(RecipeError, match=r"filters.offensive_words: .*a text file with a word a line"):
        Recipe.load(copy)


PARTS = [*KHMER_PAGE.split(), "Am", "♪", "\n", "...", "#", "012 345 678", "😀", " ", "the"]
TEXTS = st.one_of(st.text(max_size=300), st.lists(st.sampled_from(PARTS)).map("".join))


@given(st.lists(TEXTS, max_size=4))
def test_any_texts_are_judged_and_none_is_lost(texts):
    batch = documents("s", texts).collect()
    for limits in (PAGES, PAGES.model_copy(update={"short_texts": "keep", "min_characters": 1})):
        judged = filter_batch(batch, limits)
        assert judged["id"].to_list() == batch["id"].to_list()
        assert judged["text"].to_list() == [mask(text) for text in texts]
        assert judged["content_hash"].to_list() == [content_hash(mask(text)) for text in texts]
        assert not judged.select(pl.col("measure").is_nan().any()).item()
        assert judged["rule"].is_null().to_list() == judged["reason"].is_null().to_list()
