"""What is measured on held-out text is what the mathematics says."""

import math

import pytest

from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from khmer_assets.training.held_out import held_out_quality

TEXTS = ["ផ្ទះរបស់ខ្ញុំនៅជិតទន្លេ។", "យាយចម្អិនបាយសម្រាប់ចៅៗ។", "My house is near the river."]


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_bits_a_token():
    tokenizer = wrap(train_bpe(TEXTS * 30, 400))
    vocabulary = len(tokenizer)
    quality = held_out_quality(
        lambda windows: [(len(window) - 1) * math.log(vocabulary) for window in windows], tokenizer, 0, TEXTS, 8
    )
    tokens = sum(len(ids) for ids in tokenizer(TEXTS)["input_ids"])
    assert quality["perplexity"] == pytest.approx(vocabulary)
    assert quality["bits_per_character"] == pytest.approx(math.log2(vocabulary) * tokens / sum(map(len, TEXTS)))
