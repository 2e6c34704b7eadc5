"""Of documents that are alike one stays, and every one that goes is truly like the one that stays."""

import random
from pathlib import Path

import datasketch
import lancedb
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.corpus import deduplication, semantic
from khmer_assets.corpus.deduplication import (
    INDEX,
    Deduplication,
    all_documents,
    find_duplicates,
    remove_duplicates,
    sign_batch,
)
from khmer_assets.corpus.minhash import bands_and_rows, candidate_pairs
from khmer_assets.corpus.ngrams import Texts, jaccards, ngram_hashes, signatures
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


def index_of(frames: dict[str, pl.LazyFrame], settings: Deduplication, vectors) -> pl.DataFrame:
    everything = all_documents(frames)
    signed = sign_batch(everything.collect(), settings).lazy()
    return find_duplicates(everything, signed, list(frames), settings, Path(vectors.uri), vectors).collect()


def found(recipe, vectors, **texts: list[str]) -> pl.DataFrame:
    frames = {source: documents(source, own, "khm") for source, own in texts.items()}
    return index_of(frames, recipe.deduplication, vectors)


def jaccard(first: str, second: str, n: int) -> float:
    """As the definition says, with Python's sets."""
    sets = []
    for text in (first, second):
        plain = "".join(text.split())
        sets.append({plain[start : start + n] for start in range(max(1, len(plain) - n + 1))} - {""})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else 1.0


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


@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=5), st.integers(1, 6))
def test_similarities_are_those_of_the_sets_of_ngrams(pairs, n):
    texts = Texts.of(pl.Series([text for pair in pairs for text in pair], dtype=pl.String))
    first = np.arange(0, 2 * len(pairs), 2)
    assert jaccards(texts, first, first + 1, n).tolist() == [jaccard(*pair, n) for pair in pairs]


def test_signatures_estimate_the_similarity_as_well_as_datasketch():
    pairs = [(text(seed, 200), edited(text(seed, 200), 4 * seed, seed)) for seed in range(60)]
    own = signatures(Texts.of(pl.Series([text for pair in pairs for text in pair])), 5, 128)
    truth = np.array([jaccard(*pair, 5) for pair in pairs])
    estimates = (own[::2] == own[1::2]).mean(axis=1)
    reference = []
    for pair in pairs:
        minhashes = [datasketch.MinHash(128), datasketch.MinHash(128)]
        for minhash, side in zip(minhashes, pair, strict=True):
            minhash.update_batch({side[start : start + 5].encode() for start in range(len(side) - 4)})
        reference.append(minhashes[0].jaccard(minhashes[1]))
    own_error, reference_error = (np.abs(each - truth).mean() for each in (estimates, np.array(reference)))
    assert own_error < 1.3 * reference_error
    assert np.abs(estimates - truth).max() < 4 * 0.5 / 128**0.5


def test_candidates_hold_every_pair_that_datasketch_finds_alike():
    texts = [edited(text(seed % 40, 150), seed % 9, seed) for seed in range(160)]
    first, second = candidate_pairs(signatures(Texts.of(pl.Series(texts)), 5, 128), 0.8)
    candidates = set(zip(first.tolist(), second.tolist(), strict=True))
    index = datasketch.MinHashLSH(num_perm=128, params=bands_and_rows(128, 0.8))
    minhashes = []
    for number, own in enumerate(texts):
        minhashes.append(datasketch.MinHash(128))
        minhashes[-1].update_batch({own[start : start + 5].encode() for start in range(len(own) - 4)})
        index.insert(number, minhashes[-1])
    alike = {
        (number, other)
        for number, minhash in enumerate(minhashes)
        for other in index.query(minhash)
        if number < other and jaccard(texts[number], texts[other], 5) >= 0.8
    }
    assert len(alike) > 100
    assert alike <= candidates
    assert len(candidates) == first.size


def test_different_documents_all_stay(recipe, vectors):
    index = found(recipe, vectors, a=[text(seed) for seed in range(20)])
    assert index.schema == INDEX
    assert index["duplicate_rule"].null_count() == 20
    assert index["kept_id"].to_list() == index["id"].to_list()


def test_the_same_text_stays_in_the_first_source_of_the_catalogue(recipe, vectors):
    index = found(recipe, vectors, b=[text(1)], a=[text(1)])
    assert verdicts(index) == {"b:0": (None, "b:0"), "a:0": ("exact_duplicate", "b:0")}


def test_what_most_others_are_copies_of_stays(recipe, vectors):
    base = text(1, 300)
    copies = [edited(base, 18, seed) + "។" * seed for seed in range(1, 4)]
    assert jaccard(copies[0], copies[1], 5) < recipe.deduplication.jaccard
    index = found(recipe, vectors, a=[*copies, base])
    assert set(index["kept_id"]) == {"a:3"}


def test_the_longest_of_two_near_duplicates_stays(recipe, vectors):
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
        alike = jaccard(texts[row["id"]], texts[row["kept_id"]], 5)
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
        changed_recipe = recipe.deduplication.model_copy(update=strict_minhash | changed)
        index = index_of({"a": documents("a", pair, "khm")}, changed_recipe, vectors)
        assert verdicts(index)["a:1"][0] == rule


def test_the_same_input_gives_the_same_output(recipe, tmp_path):
    texts = [edited(text(seed % 7), seed % 4, seed) for seed in range(40)]
    first, second = (found(recipe, lancedb.connect(tmp_path / name), a=texts) for name in ("x", "y"))
    assert first.equals(second)


def test_only_new_contents_are_embedded_and_old_ones_leave_the_table(recipe, vectors, monkeypatch):
    embedded: list[int] = []
    embed = semantic.embed_documents

    def counted(texts, settings):
        embedded.extend([len(texts)] if any(texts) else [])
        return embed(texts, settings)

    monkeypatch.setattr(semantic, "embed_documents", counted)
    found(recipe, vectors, a=[text(1), text(2)])
    found(recipe, vectors, a=[text(2), text(3)])
    assert embedded == [2, 1]
    assert {vectors.open_table(name).count_rows() for name in vectors.list_tables().tables} == {2}


def test_many_copies_of_one_text_are_embedded_once(recipe, vectors, monkeypatch):
    monkeypatch.setattr(semantic, "DOCUMENTS_AT_ONCE", 4)
    index = found(recipe, vectors, a=[text(1)] * 30 + [text(2)])
    assert index["duplicate_rule"].null_count() == 2
    assert {vectors.open_table(name).count_rows() for name in vectors.list_tables().tables} == {2}


def test_a_large_table_is_searched_by_its_hnsw_index(recipe, vectors, monkeypatch):
    monkeypatch.setattr(semantic, "INDEX_FROM", 300)
    texts = [text(seed, 30) for seed in range(299)] + [edited(text(0, 30), 1)]
    everything = all_documents({"a": documents("a", texts, "khm")})
    settings = recipe.deduplication.model_copy(update={"semantic_cosine": 0.9})
    contents = sign_batch(everything.collect(), settings)
    pairs = semantic.neighbors(vectors, everything, contents, settings)
    table = next(name for name in vectors.list_tables().tables if name.startswith("documents"))
    assert vectors.open_table(table).list_indices()
    assert (contents["content_hash"][299], contents["content_hash"][0]) in set(
        pairs.select("content_hash", "neighbor").iter_rows()
    )


def test_without_an_embedder_there_are_no_vectors(recipe, vectors):
    settings = recipe.deduplication.model_copy(update={"embedder": None})
    index = index_of({"a": documents("a", [text(1), text(1) + "។"], "khm")}, settings, vectors)
    assert index["duplicate_rule"].to_list() == ["near_duplicate", None]
    assert vectors.list_tables().tables == []


def test_pairs_whose_texts_do_not_fit_into_memory_are_compared_in_shares(recipe, vectors, monkeypatch):
    texts = [edited(text(seed % 30), seed % 5, seed) for seed in range(90)]
    at_once = found(recipe, vectors, a=texts)
    monkeypatch.setattr(deduplication, "BYTES_AT_ONCE", 4_000)
    assert found(recipe, vectors, a=texts).equals(at_once)


def test_vectors_are_of_length_one_but_for_texts_too_short_to_tell(recipe):
    vectors = semantic.embed_documents([text(1, 600), "ទូក", ""], recipe.deduplication)
    assert np.linalg.norm(vectors, axis=1).tolist() == pytest.approx([1, 1, 0], abs=1e-5)


def test_removed_rows_carry_the_verdict_of_the_index(recipe, vectors):
    frame = documents("a", [text(1), text(1), text(2)], "khm")
    index = index_of({"a": frame}, recipe.deduplication, vectors)
    rows = remove_duplicates(frame, index.lazy()).collect()
    assert rows["rule"].to_list() == [None, "exact_duplicate", None]
    assert rows["reason"][1] == "has the same text as a:0, which stays"
    assert rows["text"].to_list() == frame.collect()["text"].to_list()


def test_texts_shorter_than_an_ngram_are_compared_whole(recipe, vectors):
    assert found(recipe, vectors, a=["ក", "ខ", "ក "])["duplicate_rule"].to_list() == ["near_duplicate", None, None]


def test_no_documents_give_an_empty_index(recipe, vectors):
    assert found(recipe, vectors, a=[]).is_empty()
