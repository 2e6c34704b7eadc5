"""The operations of a training step are those that PyTorch counts."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from khmer_assets.training import hardware, models
from tests.tiny_model import save_tiny_model


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_operations_a_token_are_those_that_are_counted(adapter, tied, tmp_path):
    model = models.load_model(save_tiny_model(tmp_path, tie_word_embeddings=tied))
    model.set_attn_implementation("eager")  # the counter knows no other on a processor
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    ids = torch.arange(128)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert hardware.flops_a_token(model, 128) * 128 == pytest.approx(counter.get_total_flops(), rel=0.1)
