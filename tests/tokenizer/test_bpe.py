"""The tokenizer keeps Khmer clusters whole and loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.tokenizer.bpe import GPT2_PATTERN, train_bpe
from khmer_assets.tokenizer.chat_template import SPECIAL_TOKENS

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
