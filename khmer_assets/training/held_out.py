"""How well a decoder predicts held-out text, in perplexity and in bits a character.

Bits a character can be compared between tokenizers, perplexity (a token) cannot.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from khmer_assets.training.models import end_of_text_id

WINDOWS_A_BATCH = 8

Scorer = Callable[[list[list[int]]], list[float]]
"""Gives, for sequences of token ids, the sum of the negative log-likelihoods (nats) of all ids but each first."""


def held_out_quality(
    score: Scorer, tokenizer: Any, end_of_text: int, texts: Sequence[str], context_length: int
) -> dict[str, float]:
    """Perplexity and bits a character of `texts`.

    Each text is one document: it begins after the end-of-text token and is cut into windows of `context_length`
    tokens, which do not overlap; so every token of the text is predicted once.
    """
    windows = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        stream = [end_of_text, *ids]
        windows += [stream[at : at + context_length + 1] for at in range(0, len(stream) - 1, context_length)]
    windows.sort(key=len)
    nats = sum(sum(score(windows[at : at + WINDOWS_A_BATCH])) for at in range(0, len(windows), WINDOWS_A_BATCH))
    tokens = sum(len(window) - 1 for window in windows)
    characters = sum(map(len, texts))
    return {
        "perplexity": math.exp(nats / tokens),
        "bits_per_character": nats / math.log(2) / characters,
        "tokens_per_character": tokens / characters,
        "characters": characters,
    }


def model_scorer(model: Any) -> Scorer:
    """A scorer for a transformers model."""
    import torch

    @torch.inference_mode()
    def score(windows: list[list[int]]) -> list[float]:
        width = max(map(len, windows))
        ids = torch.tensor([window + [0] * (width - len(window)) for window in windows], device=model.device)
        lengths = torch.tensor([len(window) for window in windows], device=model.device)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
        nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        inside = torch.arange(width - 1, device=model.device) < (lengths - 1)[:, None]
        return [float(row) for row in (nats * inside).sum(1)]

    return score


def quality_by_language(
    score: Scorer, tokenizer: Any, mixture: Path, context_length: int, max_documents: int
) -> dict[str, dict[str, float]]:
    """`held_out_quality` on the validation split of training_mixture, by language."""
    end = end_of_text_id(tokenizer)
    return {
        language: held_out_quality(score, tokenizer, end, texts, context_length)
        for language, texts in validation_texts(mixture, max_documents).items()
    }


def validation_texts(mixture: Path, max_documents: int) -> dict[str, list[str]]:
    """At most `max_documents` texts a language of the mixture's validation split, in the mixture's order."""
    frame = pl.read_parquet(mixture / "data.parquet").filter(pl.col("split") == "validation")
    by_language = frame.partition_by("language", as_dict=True)
    return {
        str(language): by_language[(language,)]["text"].head(max_documents).to_list()
        for (language,) in sorted(by_language)
    }
