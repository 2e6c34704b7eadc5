"""Of documents that are alike one stays, and every one that goes is truly like the one that stays."""

import random

import lancedb
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.corpus import semantic
from khmer_assets.corpus.duplicates import INDEX, find_duplicates, remove_duplicates
from khmer_assets.corpus.minhash import distinct_ngrams
from khmer_assets.corpus.ngrams import jaccard, ngram_hashes
from tests.corpus.conftest import documents

SYLLABLES = ["ក្រុង", "ភូមិ", "ទឹក", "ដី", "ព្រៃ", "ត្រី", "ស្រូវ", "ផ្លូវ", "មេឃ", "ខ្យល់", "សាលា", "ផ្សារ", "ទូក", "កូន", "ឪពុក", "ម្តាយ"]


def text(seed: int, syllables: int = 120) -> str:
    return "".join(random.Random(seed).choices(SYLLABLES, k=syllables))


def edited(text: str, edits: int, seed: int = 0) -> str:
    characters = list(text)
    for place in random.Random(seed).sample(range(len(characters)), edits):
        characters[place] = "x"
    return "".join(characters)


@pytest.fixture
def vectors(tmp_path):
    return lancedb.connect(tmp_path)


def found(recipe, vectors, **texts: list[str]) -> pl.DataFrame:
    frames = {source: documents(source, own, "khm") for source, own in texts.items()}
    return find_duplicates(frames, recipe.deduplication, vectors).collect()


def verdicts(index: pl.DataFrame) -> dict[str, tuple[str | None, str]]:
    return {row["id"]: (row["duplicate_rule"], row["kept_id"]) for row in index.iter_rows(named=True)}


@given(st.text(max_size=30), st.integers(1, 8))
def test_hashes_are_equal_exactly_where_the_ngrams_are(text, n):
    plain = "".join(text.split())
    n = min(n, len(plain))
    ngrams = [plain[start : start + n] for start in range(len(plain) - n + 1)] if n else []
    hashes = ngram_hashes(text, n or 1).tolist()
    assert len(hashes) == len(ngrams)
    assert len(set(zip(hashes, ngrams, strict=True))) == len(set(hashes)) == len(set(ngrams))


def test_different_documents_all_stay(recipe, vectors):
    index = found(recipe, vectors, a=[text(seed) for seed in range(20)])
    assert index.schema == INDEX
    assert index["duplicate_rule"].null_count() == 20
    assert index["kept_id"].to_list() == index["id"].to_list()


def test_the_same_text_stays_in_the_first_source_of_the_catalogue(recipe, vectors):
    index = found(recipe, vectors, b=[text(1)], a=[text(1)])
    assert verdicts(index) == {"b:0": (None, "b:0"), "a:0": ("exact_duplicate", "b:0")}


def test_the_longest_of_near_duplicates_stays(recipe, vectors):
    index = found(recipe, vectors, a=[edited(text(1), 3), text(1) + "។"])
    assert verdicts(index)["a:0"] == ("near_duplicate", "a:1")
    assert index["measure"][0] >= recipe.deduplication.jaccard


def test_a_chain_of_copies_leaves_what_no_kept_document_stands_for(recipe, vectors):
    chain = [text(1)]
    for step in range(6):
        chain.append(edited(chain[-1], 7, seed=step))
    index = found(recipe, vectors, a=chain)
    texts = {f"a:{number}": own for number, own in enumerate(chain)}
    removed = index.filter(pl.col("duplicate_rule").is_not_null())
    assert 0 < removed.height < 6
    for row in removed.iter_rows(named=True):
        alike = jaccard(*(distinct_ngrams(texts[row[key]], 5) for key in ("id", "kept_id")))
        assert alike >= recipe.deduplication.jaccard
        assert row["measure"] == pytest.approx(alike)
    assert set(removed["kept_id"]).isdisjoint(removed["id"])


def test_a_semantic_duplicate_needs_all_three_thresholds(recipe, vectors):
    strict_minhash = {"jaccard": 0.99, "semantic_cosine": 0.9, "semantic_jaccard": 0.6, "semantic_length_ratio": 0.7}
    pair = [text(1), edited(text(1), 5)]
    for changed, rule in [
        ({}, "semantic_duplicate"),
        ({"semantic_jaccard": 0.98}, None),
        ({"semantic_cosine": 1.0}, None),
    ]:
        settings = recipe.deduplication.model_copy(update=strict_minhash | changed)
        index = find_duplicates({"a": documents("a", pair, "khm")}, settings, vectors).collect()
        assert verdicts(index)["a:1"][0] == rule


def test_the_same_input_gives_the_same_output(recipe, tmp_path):
    texts = [edited(text(seed % 7), seed % 4, seed) for seed in range(40)]
    first, second = (found(recipe, lancedb.connect(tmp_path / name), a=texts) for name in ("x", "y"))
    assert first.equals(second)


def test_only_new_contents_are_embedded_and_old_ones_leave_the_table(recipe, vectors, monkeypatch):
    embedded: list[int] = []
    embed = semantic.embed_documents

    def counted(texts, settings):
        embedded.append(len(texts))
        return embed(texts, settings)

    monkeypatch.setattr(semantic, "embed_documents", counted)
    found(recipe, vectors, a=[text(1), text(2)])
    found(recipe, vectors, a=[text(2), text(3)])
    assert embedded == [2, 1]
    (name,) = vectors.list_tables().tables
    assert vectors.open_table(name).count_rows() == 2


def test_a_large_table_is_searched_by_its_hnsw_index(recipe, vectors, monkeypatch):
    monkeypatch.setattr(semantic, "INDEX_FROM", 300)
    texts = [text(seed, 30) for seed in range(299)] + [edited(text(0, 30), 1)]
    frame = documents("a", texts, "khm").select("content_hash", "source", "language", "text").collect()
    settings = recipe.deduplication.model_copy(update={"semantic_cosine": 0.9})
    table = semantic.update_table(vectors, frame, settings)
    assert table.list_indices()
    pairs = semantic.neighbors(table, settings)
    assert (frame["content_hash"][299], frame["content_hash"][0]) in set(
        pairs.select("content_hash", "neighbor").iter_rows()
    )


def test_vectors_are_of_length_one_but_for_texts_too_short_to_tell(recipe):
    vectors = semantic.embed_documents([text(1, 600), "ទូក", ""], recipe.deduplication)
    assert np.linalg.norm(vectors, axis=1).tolist() == pytest.approx([1, 1, 0], abs=1e-5)


def test_removed_rows_carry_the_verdict_of_the_index(recipe, vectors):
    frame = documents("a", [text(1), text(1), text(2)], "khm")
    index = find_duplicates({"a": frame}, recipe.deduplication, vectors)
    rows = remove_duplicates(frame, index).collect()
    assert rows["rule"].to_list() == [None, "exact_duplicate", None]
    assert rows["reason"][1] == "has the same text as a:0, which stays"
    assert rows["text"].to_list() == frame.collect()["text"].to_list()


def test_texts_shorter_than_an_ngram_are_compared_whole(recipe, vectors):
    assert found(recipe, vectors, a=["ក", "ខ", "ក "])["duplicate_rule"].to_list() == ["near_duplicate", None, None]


def test_no_documents_give_an_empty_index(recipe, vectors):
    assert found(recipe, vectors, a=[]).is_empty()
