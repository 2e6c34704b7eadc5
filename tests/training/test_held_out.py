"""What is measured on held-out text is what the mathematics says, in whatever memory there is."""

import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from khmer_assets.foundation.home import PROJECT
from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from khmer_assets.training import held_out, models
from khmer_assets.training.held_out import held_out_quality, model_scorer
from tests.tiny_model import save_tiny_model

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


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "gpt2"])
def test_a_window_that_is_read_in_parts_has_the_score_of_the_whole(architecture, tmp_path, monkeypatch):
    model = models.load_model(save_tiny_model(tmp_path, architecture=architecture)).eval()
    windows = [list(range(5, 70)), list(range(100, 130)), [7, 8]]
    whole = model_scorer(model)(windows)
    for positions in (1, 7, 40):
        monkeypatch.setattr(held_out, "LOGITS_AT_ONCE", positions * model.config.vocab_size)
        assert model_scorer(model)(windows) == pytest.approx(whole, rel=1e-5)


def test_the_logits_of_a_large_vocabulary_fit_where_those_of_a_window_would_not():
    script = (
        "from pathlib import Path; from tests.training.test_held_out import score_in_little_memory as score; score()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def score_in_little_memory() -> None:
    """Score a window whose logits (150,000 a token) take 614 MB, and as much again for the loss, in 700 MB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=150_000, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=1, max_position_embeddings=1024)  # fmt: skip
    torch.manual_seed(0)
    score = model_scorer(LlamaForCausalLM(config).eval())
    score([[1, 2, 3]])
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(status["VmSize"].split()[0]) * 1024 + 700_000_000
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    assert score([list(range(1025))])[0] / 1024 == pytest.approx(math.log(150_000), rel=0.1)
