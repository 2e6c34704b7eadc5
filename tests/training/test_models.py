"""Attention is written out where that trains faster, and says the same."""

import pytest
import torch

from khmer_assets.training.models import choose_attention, load_model
from tests.tiny_model import save_tiny_model


@pytest.mark.parametrize(
    ("rows", "length", "precision", "chosen"),
    [
        (4, 256, "bfloat16", "eager"),
        (4, 512, "bfloat16", "sdpa"),
        (4, 256, "float32", "sdpa"),
        (4_000, 256, "bfloat16", "sdpa"),
    ],
)
def test_short_rows_in_bfloat16_have_their_attention_written_out(tmp_path, rows, length, precision, chosen):
    model = load_model(save_tiny_model(tmp_path))
    ids = torch.arange(40)[None] + 5
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        choose_attention(model, rows, length, precision)
        torch.testing.assert_close(model(input_ids=ids).logits, before, atol=1e-5, rtol=1e-4)
    assert model.config._attn_implementation == chosen
