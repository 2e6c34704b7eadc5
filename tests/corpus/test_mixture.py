"""The mixture follows the weights, and a text is trained on or held out, never both."""

import polars as pl
import pytest

from khmer_assets.corpus import mixture
from khmer_assets.corpus.mixture import MAX_COPIES, MIXTURE, mix, repeats_by_language
from tests.corpus.conftest import documents

KHMER = documents("km", [f"ភូមិទី {number} មានផ្សារ" for number in range(600)], "khm")
ENGLISH = documents("en", [f"Village number {number} has a market by the river" for number in range(600)], "eng")


def shares(mixture: pl.DataFrame) -> dict[str, float]:
    used = (
        mixture.filter(split="train")
        .group_by("language")
        .agg((pl.col("text").str.len_chars() * pl.col("copies")).sum())
    )
    return {language: count / used["text"].sum() for language, count in used.iter_rows()}


def test_characters_follow_the_weights_by_repeating_the_scarcer_language(recipe, tmp_path):
    mixture = mix({"km": KHMER, "en": ENGLISH}, recipe.mixture, 1, tmp_path).collect()
    assert mixture.schema == MIXTURE
    assert shares(mixture)["khm"] == pytest.approx(0.6, abs=0.02)
    assert mixture.filter(language="eng")["copies"].unique().to_list() == [1]
    assert mixture.filter(split="validation")["copies"].unique().to_list() == [1]
    assert mixture.height == 1200


def test_repeats_are_capped(recipe):
    assert repeats_by_language({"khm": 1, "eng": 1000}, recipe.mixture) == {"khm": MAX_COPIES, "eng": 1.0}


def test_one_language_alone_is_not_repeated(recipe):
    assert repeats_by_language({"khm": 5}, recipe.mixture) == {"khm": 1.0}


def test_a_text_stays_in_its_split_when_documents_come_and_go(recipe, tmp_path):
    alone = mix({"km": KHMER}, recipe.mixture, 1, tmp_path).collect()
    both = mix({"en": ENGLISH, "km": KHMER}, recipe.mixture, 1, tmp_path / "both").collect().filter(source="km")
    assert dict(alone.select("id", "split").iter_rows()) == dict(both.select("id", "split").iter_rows())


def test_about_the_asked_share_is_held_out_and_the_seed_chooses_it(recipe, tmp_path):
    settings = recipe.mixture.model_copy(update={"validation_ratio": 0.2})
    first, second = (mix({"km": KHMER}, settings, seed, tmp_path / str(seed)).collect() for seed in (1, 2))
    held_out = [set(mixture.filter(split="validation")["id"]) for mixture in (first, second)]
    assert all(80 <= len(ids) <= 160 for ids in held_out)
    assert held_out[0] != held_out[1]
    assert first["id"].to_list() != second["id"].to_list()
    assert first.equals(mix({"km": KHMER}, settings, 1, tmp_path / "again").collect())


def test_the_order_is_that_of_all_documents_however_many_parts_are_sorted(recipe, tmp_path, monkeypatch):
    texts = {"km": KHMER, "en": ENGLISH, "copies": documents("copies", ["ពាក្យដដែល"] * 5, "khm")}
    parted = []
    for number, size in enumerate((10**9, 1_000, 1)):
        monkeypatch.setattr(mixture, "PART_BYTES", size)
        folder = tmp_path / str(number)
        mix(texts, recipe.mixture, 1, folder).sink_parquet(tmp_path / "mixed.parquet", row_group_size=100)
        parted.append((len(list(folder.glob("*.parquet"))), (tmp_path / "mixed.parquet").read_bytes()))
    assert parted[0][0] == 1
    assert parted[1][0] > 20 and parted[2][0] > 200
    assert len({content for _, content in parted}) == 1
    mixed = pl.read_parquet(tmp_path / "mixed.parquet")
    assert mixed.filter(source="copies")["id"].to_list() == [f"copies:{number}" for number in range(5)]
    assert mixed["source"].rle().len() > 300, "shuffled"


def test_a_language_without_a_weight_is_left_out(recipe, tmp_path):
    assert mix({"x": documents("x", ["Une phrase."], None)}, recipe.mixture, 1, tmp_path).collect().is_empty()


def test_a_weighed_document_is_used_as_often_as_its_weight_says(recipe, tmp_path):
    heavy = KHMER.with_columns(weight=pl.when(pl.col("id") == "km:7").then(3.0).otherwise(1.0))
    light = ENGLISH.with_columns(weight=pl.lit(0.25))
    mixture = mix({"km": heavy, "en": light}, recipe.mixture, 1, tmp_path).collect()
    train = mixture.filter(split="train")
    by_language = dict(train.group_by("language").agg(pl.col("copies").mean()).iter_rows())
    assert mixture.schema == MIXTURE
    assert train["copies"].min() == 1  # what is left out is not there
    assert train.filter(language="eng").height < 300
    assert mixture.filter(split="validation", language="eng").height > 10  # none of these is left out
    assert shares(mixture)["khm"] == pytest.approx(0.6, abs=0.06)
    assert by_language["khm"] < 1.2
    assert train.filter(id="km:7")["copies"].to_list() in ([3], [4], [])


def test_no_weight_makes_a_document_be_used_more_often_than_is_worth_it(recipe, tmp_path):
    heavy = KHMER.with_columns(weight=pl.lit(100.0))
    mixture = mix({"km": heavy}, recipe.mixture, 1, tmp_path).collect()
    assert mixture["copies"].max() == MAX_COPIES
