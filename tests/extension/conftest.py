"""Small open models that know no Khmer, with the tokenizers that such models have, and a mixture to extend them by."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from khmer_assets.tokenizer.bpe import GPT2_PATTERN, QWEN2_PATTERN, train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS, save_tiny_mixture

ADDED = "<tool_call>"  # beside the vocabulary, as Qwen's special tokens are


def save_base(folder: Path, pattern: str, tokenizer_class: str, **config: Any) -> Path:
    """Save a random Qwen 2 whose tokenizer cuts with `pattern` and has learned English alone."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = wrap(train_bpe(ENGLISH_TEXTS, 400, pattern))
    tokenizer.add_tokens([ADDED])
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(Qwen2Config(**{**sizes, **config})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": tokenizer_class}))
    (folder / "base.json").write_text('{"model": "a small one", "license": "mit"}')
    return folder


@pytest.fixture(scope="session")
def qwen(tmp_path_factory) -> Path:
    """A base with Qwen 2's pattern, and its tokenizer's class, which has a pattern of its own."""
    return save_base(tmp_path_factory.mktemp("qwen"), QWEN2_PATTERN, "Qwen2Tokenizer")


@pytest.fixture(scope="session")
def smollm(tmp_path_factory) -> Path:
    """A base with GPT-2's own pre-tokenizer after a step that parts digits, as SmolLM2 has."""
    folder = save_base(tmp_path_factory.mktemp("smollm"), GPT2_PATTERN, "GPT2Tokenizer")
    content = json.loads((folder / "tokenizer.json").read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps = [{"type": "Digits", "individual_digits": True}, byte_level]
    content |= {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "normalizer": {"type": "Sequence", "normalizers": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


@pytest.fixture(scope="session")
def mixture(tmp_path_factory) -> Path:
    """A mixture whose Khmer is repeated often enough to learn from."""
    folder = save_tiny_mixture(tmp_path_factory.mktemp("mixture"))
    frame = pl.read_parquet(folder / "data.parquet")
    frame.with_columns(copies=pl.lit(3)).write_parquet(folder / "data.parquet")
    assert frame["text"].to_list() == [*KHMER_TEXTS, *ENGLISH_TEXTS]
    return folder
