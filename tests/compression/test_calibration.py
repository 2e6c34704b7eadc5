"""Calibration samples are half texts, half chats, of each half Khmer, half English, and the same for the same seed."""

import polars as pl
import pytest

from khmer_assets.compression.calibration import (
    CalibrationSpec,
    calibration_rows,
    calibration_samples,
    calibration_texts,
    compressible_layers,
)
from khmer_assets.training.models import load_model
from resources.payload import Refusal
from tests.compression.conftest import QUESTIONS
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS, save_tiny_model


def samples(calibration: dict, count: int, **changes: str | None) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(calibration["model"])
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return calibration_samples(CalibrationSpec(**{**calibration, "samples": count}), tokenizer)


def language_of(sample: str) -> str:
    return "khm" if any("\u1780" <= character <= "\u17ff" for character in sample) else "eng"


def test_texts_and_chats_of_both_languages_come_in_turn(calibration):
    found = samples(calibration, 8)
    assert [sample.startswith("<|im_start|>user") for sample in found] == [False, True] * 4
    assert [language_of(sample) for sample in found] == ["khm", "khm", "eng", "eng"] * 2
    for chat in found[1::2]:
        assert QUESTIONS[language_of(chat)] in chat and chat.rstrip().endswith("<|im_end|>")


def test_the_seed_decides_which_chats_and_no_held_out_one_is_used(calibration):
    assert samples(calibration, 6) == samples(calibration, 6)
    assert len({tuple(samples(calibration | {"seed": seed}, 6)[1::2]) for seed in range(8)}) > 1
    everything = "".join(samples(calibration, 100)[1::2])
    assert KHMER_TEXTS[4] not in everything and ENGLISH_TEXTS[4] not in everything


def test_texts_fill_up_where_there_are_too_few_chats_and_the_other_way_round(calibration):
    found = samples(calibration, 17)
    assert sum(sample.startswith("<|im_start|>") for sample in found) == 8  # all that there are
    assert len(found) == 8 + 9
    assert len(samples(calibration, 24)) == 8 + 10


def test_a_model_without_a_template_gets_texts_alone(calibration):
    assert not any(sample.startswith("<|im_start|>") for sample in samples(calibration, 8, chat_template=None))


def test_a_chat_that_the_template_refuses_is_left_out(calibration):
    template = (
        "{% if messages[0].content == 'Say a sentence.' %}{{ raise_exception('no') }}{% endif %}"
        "{{ bos_token }}{{ messages[1].content }}"
    )
    found = samples(calibration, 10, chat_template=template, bos_token="<|endoftext|>")
    assert len(found) == 10
    assert {language_of(sample) for sample in found[1:8:2]} == {"khm"}
    assert not any("<|endoftext|>" in sample for sample in found), "the tokenizer puts it there by itself"


def test_a_row_holds_what_it_has_room_for_and_its_samples_do_not_see_each_other(calibration):
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(calibration["model"])
    spec = CalibrationSpec(**{**calibration, "length": 128})
    alone = [tokenizer(text, return_tensors="pt")["input_ids"] for text in calibration_samples(spec, tokenizer)]
    rows = calibration_rows(spec, tokenizer)
    assert len(rows) < len(alone)
    assert torch.equal(torch.cat([row["input_ids"] for row in rows], 1), torch.cat(alone, 1))
    model = load_model(spec.model).eval()
    with torch.inference_mode():
        together = torch.cat([model(**row, use_cache=False).logits for row in rows], 1)
        expected = torch.cat([model(input_ids=ids, use_cache=False).logits for ids in alone], 1)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)
    assert all(row["input_ids"].shape[1] <= 128 for row in rows)


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
