"""The tokenizer keeps Khmer clusters whole and loses nothing."""

import subprocess
import sys

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from khmer_assets.foundation.home import PROJECT
from khmer_assets.tokenizer.bpe import GPT2_PATTERN, TrainingSample, train_bpe
from khmer_assets.tokenizer.chat_template import SPECIAL_TOKENS
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS, save_tiny_model

SENTENCES = [
    "ខ្ញុំរៀនភាសាខ្មែរនៅសាលា។",
    "ស្ត្រីចំណាស់ទិញត្រីនៅផ្សារព្រឹក។",
    "កុមារលេងបាល់នៅទីធ្លាវត្ត។",
    "ទឹកភ្លៀងធ្លាក់លើស្រែនៅខែកក្កដា។",
    "The children play football near the pagoda.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(SENTENCES * 20, 600)


@given(st.text())
def test_any_text_comes_back_as_it_was(tokenizer, text):
    text = text.encode("utf-8", "replace").decode()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not any(special in text for special in SPECIAL_TOKENS):
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_marks_stay_with_their_letters(tokenizer):
    words = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("ស្ត្រី ទិញ")]
    assert len(words) == 2


def test_khmer_needs_fewer_tokens_than_with_the_gpt2_pattern(tokenizer):
    other = train_bpe(SENTENCES * 20, 600, GPT2_PATTERN)
    assert len(tokenizer.encode(SENTENCES[1]).ids) < len(other.encode(SENTENCES[1]).ids) / 2


def test_a_sample_ends_where_it_has_enough_characters_and_says_so(mixture):
    whole = TrainingSample(mixture, 1_000_000)
    texts = list(whole)
    sample = TrainingSample(mixture, len(texts[0]) + 1)
    assert list(sample) == texts[:2] == list(sample)
    assert (sample.texts, sample.characters) == (2, len(texts[0]) + len(texts[1]))
    assert (whole.texts, whole.characters) == (len(texts), sum(map(len, texts)))


def test_a_mixture_is_read_without_having_it_in_memory(tmp_path):
    text = pl.col("number").cast(pl.String) + "ទន្លេ" * 200
    pl.DataFrame({"number": range(75_000)}).select(text=text, split=pl.lit("train"), copies=pl.lit(1)).write_parquet(
        tmp_path / "data.parquet", row_group_size=50
    )  # 225 MB of text
    script = (
        "import resource, sys; from pathlib import Path; from khmer_assets.tokenizer.bpe import texts_of;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; before = peak();"
        "characters = sum(len(text) for text in texts_of(Path(sys.argv[1]), 'train'));"
        "print(characters, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    characters, megabytes = map(int, done.stdout.split())
    assert characters > 75_000 * 1_000
    assert megabytes < 180


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2", "llama", "gpt2"])
def test_every_architecture_is_read_with_the_projects_own_pattern(tmp_path, architecture):
    """transformers has classes of its own for some, which cut text by another pattern than the file's."""
    own = train_bpe((*KHMER_TEXTS, *ENGLISH_TEXTS), 512)
    read = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path, architecture=architecture))
    for text in (*KHMER_TEXTS, *ENGLISH_TEXTS):
        assert read(text)["input_ids"] == own.encode(text).ids
