"""Trains the tokenizer, a byte-level BPE whose pre-tokenizer keeps Khmer marks with their letters.

GPT-2's pattern cuts Khmer at every vowel sign, because those are marks (\\p{M}) and not letters (\\p{L}). The pattern
here is Qwen 3.5's, which keeps both together and which llama.cpp knows under the name "qwen35", so that transformers,
vLLM and llama.cpp give the same ids.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
from pydantic import BaseModel, Field

from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.tokenizer.chat_template import SPECIAL_TOKENS, wrap
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TokenizerSettings(Settings):
    """`sample_characters`: how much of the training text the tokenizer is learned from; each million takes up to 270 MB
    of memory, most for unspaced Khmer."""

    vocabulary_size: Annotated[int, Field(ge=300, le=500_000)]
    sample_characters: PositiveInt = 20_000_000


KHMER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Of Qwen 2 to 3; Qwen 3.5's, which llama.cpp calls qwen35, has \p{M} beside \p{L} and is the same otherwise.
QWEN2_PATTERN = KHMER_PATTERN.replace(r"[\p{L}\p{M}]", r"\p{L}").replace(r"\p{M}", "")
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

ROWS_AT_ONCE = 1_000


class Spec(BaseModel):
    """`mixture` is the folder of training_mixture."""

    mixture: Path
    vocabulary_size: int
    sample_characters: int


def train_bpe(texts: Iterable[str], vocabulary_size: int, pattern: str = KHMER_PATTERN) -> "Tokenizer":
    """A byte-level BPE of `vocabulary_size` entries (special tokens and the 256 bytes included)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def texts_of(mixture: Path, split: str, language: str | None = None) -> Iterator[str]:
    """The texts of one split of a training mixture, each as often as the language weights repeat it."""
    frame = pl.scan_parquet(mixture / "data.parquet").filter(pl.col("split") == split)
    if language is not None:
        frame = frame.filter(pl.col("language") == language)
    for batch in frame.select("text", "copies").collect_batches(chunk_size=ROWS_AT_ONCE, maintain_order=True):
        for text, copies in batch.iter_rows():
            for _ in range(copies):
                yield text


class TrainingSample:
    """The first texts of the train split, until they have `limit` characters. As the mixture is shuffled, that is a
    random sample of it; `texts` and `characters` count what was drawn."""

    def __init__(self, mixture: Path, limit: int):
        self.mixture = mixture
        self.limit = limit
        self.texts = self.characters = 0

    def __iter__(self) -> Iterator[str]:
        self.texts = self.characters = 0
        for text in texts_of(self.mixture, "train"):
            if self.characters >= self.limit:
                return
            self.texts += 1
            self.characters += len(text)
            yield text


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the tokenizer's folder. Raises `Refusal` when the text is too little for the vocabulary."""
    run.log(f"training a byte-level BPE of {spec.vocabulary_size} entries")
    sample = TrainingSample(spec.mixture, spec.sample_characters)
    tokenizer = train_bpe(sample, spec.vocabulary_size)
    size = tokenizer.get_vocab_size()
    if size < spec.vocabulary_size:
        raise Refusal(
            f"the training text yields only {size} tokens, fewer than tokenizer.vocabulary_size "
            f"({spec.vocabulary_size}); lower the setting or add text"
        )
    wrap(tokenizer).save_pretrained(run.output)
    return {"vocabulary_size": size, "sampled_texts": sample.texts, "sampled_characters": sample.characters}
