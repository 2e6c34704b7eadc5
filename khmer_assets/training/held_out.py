"""How well a decoder predicts held-out text, in perplexity and in bits a character.

Bits a character can be compared between tokenizers, perplexity (a token) cannot.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from khmer_assets.training.models import end_of_text_id

if TYPE_CHECKING:
    import torch

WINDOWS_A_BATCH = 8
# Of a vocabulary of 150,000, the logits of a window of 4,096 tokens would take 2.5 GB in float32, and as much again for
# each step of the loss. So many take 134 MB.
LOGITS_AT_ONCE = 1 << 25

T = TypeVar("T")

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

    def score(windows: list[list[int]]) -> list[float]:
        rows = max(1, positions_at_once(model.config.get_text_config().vocab_size) // max(map(len, windows)))
        return [nats for at in range(0, len(windows), rows) for nats in score_together(windows[at : at + rows])]

    def score_together(windows: list[list[int]]) -> list[float]:
        width = max(map(len, windows))
        ids = torch.tensor([window + [0] * (width - len(window)) for window in windows], device=model.device)
        lengths = torch.tensor([len(window) for window in windows], device=model.device)
        inside = torch.arange(width - 1, device=model.device) < (lengths - 1)[:, None]
        return [float(row) for row in (token_nats(model, ids) * inside).sum(1)]

    return score


def token_nats(model: Any, ids: "torch.Tensor") -> "torch.Tensor":
    """The negative log-likelihood (nats) of each id but a row's first, of shape (rows, width - 1), for ids of shape
    (rows, width). No more than `LOGITS_AT_ONCE` logits are held at once: a longer row is read in parts, each of which
    sees those before it in the model's cache."""
    import torch

    part = max(1, positions_at_once(model.config.get_text_config().vocab_size) // len(ids))
    whole = ids.shape[1] - 1 <= part
    cache, nats = None, []
    with torch.inference_mode():
        for at in range(0, ids.shape[1] - 1, part):
            targets = ids[:, at + 1 : at + 1 + part]
            read = ids[:, at : at + targets.shape[1]]
            output = model(input_ids=read, past_key_values=cache, use_cache=not whole)
            cache = output.past_key_values
            logits = output.logits.float().transpose(1, 2)
            nats.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        return torch.cat(nats, dim=1)


def positions_at_once(vocabulary: int) -> int:
    """Of how many tokens the logits may be held at once."""
    return max(1, LOGITS_AT_ONCE // vocabulary)


def measured(measure: Callable[[], T]) -> tuple[T | None, str | None]:
    """What `measure` gives; or None and the reason, for a trained model is not lost because it could not be scored."""
    try:
        return measure(), None
    except (MemoryError, OSError, RuntimeError) as error:  # in all of these ways is told that there is no memory left
        return None, f"{type(error).__name__}: {error}"


def quality_by_language(
    score: Scorer,
    tokenizer: Any,
    mixture: Path,
    context_length: int,
    max_documents: int,
    share: slice = slice(None),
) -> dict[str, dict[str, float]]:
    """`held_out_quality` on the validation split of training_mixture, by language; or on a `share` of each language's
    texts. A language of which there is none is left out."""
    end = end_of_text_id(tokenizer)
    texts_of = validation_texts(mixture, max_documents)
    return {
        language: held_out_quality(score, tokenizer, end, texts[share], context_length)
        for language, texts in texts_of.items()
        if texts[share]
    }


def loss_of(quality: dict[str, dict[str, float]]) -> tuple[float, int]:
    """The loss, in nats, of the texts of all languages of `quality_by_language`, and the number of their tokens."""
    tokens = [round(figures["tokens_per_character"] * figures["characters"]) for figures in quality.values()]
    nats = [count * math.log(figures["perplexity"]) for count, figures in zip(tokens, quality.values(), strict=True)]
    return sum(nats), sum(tokens)


def validation_texts(mixture: Path, max_documents: int) -> dict[str, list[str]]:
    """At most `max_documents` texts a language of the mixture's validation split, in the mixture's order."""
    held_out = pl.scan_parquet(mixture / "data.parquet").filter(pl.col("split") == "validation")
    languages = held_out.select("language").unique().sort("language").collect()["language"]
    return {
        language: held_out.filter(pl.col("language") == language)
        .select("text")
        .head(max_documents)
        .collect()["text"]
        .to_list()
        for language in languages
    }
