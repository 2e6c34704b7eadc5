"""Calibration texts are half Khmer, half English, and the same for the same seed."""

import polars as pl
import pytest

from khmer_assets.compression.calibration import calibration_texts, compressible_layers
from khmer_assets.training.models import load_model
from resources.payload import Refusal
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS, save_tiny_model


def test_half_of_the_texts_are_khmer(mixture):
    texts = calibration_texts(mixture, 6, seed=1)
    assert [text in KHMER_TEXTS for text in texts] == [True, False] * 3
    assert len(set(texts)) == 6


def test_held_out_texts_are_never_used(mixture):
    assert {KHMER_TEXTS[5], ENGLISH_TEXTS[5]}.isdisjoint(calibration_texts(mixture, 100, seed=1))


def test_the_seed_decides_which_texts(mixture):
    assert calibration_texts(mixture, 4, seed=1) == calibration_texts(mixture, 4, seed=1)
    assert len({tuple(calibration_texts(mixture, 4, seed=seed)) for seed in range(8)}) > 1


def test_a_language_with_too_few_texts_is_filled_up_by_the_other(mixture, tmp_path):
    frame = pl.read_parquet(mixture / "data.parquet")
    frame.filter((pl.col("language") == "khm") | (pl.col("id") == "7")).write_parquet(tmp_path / "data.parquet")
    texts = calibration_texts(tmp_path, 6, seed=1)
    assert len(texts) == 6
    assert [text for text in texts if text not in KHMER_TEXTS] == [ENGLISH_TEXTS[1]]


def test_a_mixture_without_training_text_is_refused(mixture, tmp_path):
    pl.read_parquet(mixture / "data.parquet").clear().write_parquet(tmp_path / "data.parquet")
    with pytest.raises(Refusal, match="split 'train'"):
        calibration_texts(tmp_path, 6, seed=1)


def test_the_output_head_is_left_alone(tmp_path):
    model = load_model(save_tiny_model(tmp_path, tie_word_embeddings=False))
    assert len(compressible_layers(model)) == 14
    assert "lm_head" not in compressible_layers(model)


def test_gpt2_has_no_layers_to_compress(tmp_path):
    with pytest.raises(Refusal, match=r"'gpt2'.*qwen3"):
        compressible_layers(load_model(save_tiny_model(tmp_path, architecture="gpt2")))
