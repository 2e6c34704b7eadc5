"""The gateway sees the n-grams that the label model sees, without compiling anything."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.labels import features
from khmer_assets.server.text_features import BITS, CHARACTERS, ngrams

ONE_UNIT = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"])  # of UTF-16, in which both count


def buckets_of_labels(text: str) -> set[int]:
    counts = features.ngram_counts([text], 10_000)
    return {int(bucket) >> (features.BITS - BITS) for bucket in counts.buckets}


@given(st.text(st.sampled_from("កខគ្ឃសួស្តី \t\n\u200b០១9aAÀ!?។"), max_size=60) | st.text(ONE_UNIT, max_size=40))
def test_the_buckets_are_the_label_models(text):
    assert set(ngrams(text)[0].tolist()) == buckets_of_labels(text)


def test_case_digits_spaces_and_word_breaks_make_no_difference():
    first, second = ngrams("តើ ១២ + 7 Is\u200b it?"), ngrams("  តើ ៩៨ + 3  is it? ")
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])


def test_weights_have_length_1_and_nothing_has_none():
    assert np.linalg.norm(ngrams("ខុសហើយ ខុសហើយ")[1]) == np.float32(1)
    assert all(part.size == 0 for part in ngrams(" \u200b\n"))


def test_texts_that_are_seen_together_do_not_weaken_each_other():
    first, second = ngrams("Answer with JSON alone."), ngrams("ខុសហើយ")
    both = ngrams("Answer with JSON alone.", "ខុសហើយ")
    assert all(np.array_equal(np.concatenate(parts), found) for *parts, found in zip(first, second, both, strict=True))


def test_of_a_long_text_both_ends_count_and_no_more():
    long = "ក" * 5000 + "ខ" * 100_000 + "គ" * 5000
    assert np.array_equal(ngrams(long)[0], ngrams("ក" * (CHARACTERS // 2) + " " + "គ" * (CHARACTERS // 2))[0])
