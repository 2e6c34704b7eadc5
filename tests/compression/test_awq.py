"""AWQ stores 4-bit weights that transformers loads again and that predict nearly what the model predicted."""

import json

import pytest

from khmer_assets.compression import awq
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal
from tests.tiny_model import ENGLISH_TEXTS, save_tiny_model


@pytest.mark.slow
def test_four_bit_weights_keep_what_the_model_says(calibration, model, tmp_path):
    import torch
    from transformers import AutoTokenizer

    run = PayloadRun(tmp_path)
    figures = awq.main(awq.Spec(group_size=128, **calibration), run)

    # 4 bits, a 16-bit scale a group of 128 and the shape of each tensor, of 16 bits
    assert 0.25 + 1 / 128 <= figures["linear_bytes_ratio"] < 0.26
    config = json.loads((run.output / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert config["tie_word_embeddings"]
    ids = AutoTokenizer.from_pretrained(run.output)(ENGLISH_TEXTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = load_model(run.output, torch.bfloat16)(input_ids=ids).logits.float()
        expected = load_model(model)(input_ids=ids).logits
    assert torch.corrcoef(torch.stack([logits.flatten(), expected.flatten()]))[0, 1] > 0.95


def test_rows_that_do_not_divide_into_groups_are_refused(calibration, tmp_path):
    with pytest.raises(Refusal, match=r"rows of 256 .*awq_group_size \(96\)"):
        awq.main(awq.Spec(group_size=96, **calibration), PayloadRun(tmp_path))


def test_gpt2_is_refused(calibration, tmp_path):
    calibration["model"] = save_tiny_model(tmp_path / "gpt2", architecture="gpt2")
    with pytest.raises(Refusal, match="'gpt2' has no Linear layers"):
        awq.main(awq.Spec(group_size=128, **calibration), PayloadRun(tmp_path))
