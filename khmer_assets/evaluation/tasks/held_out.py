"""Held-out text of the mixture, by language: bits a character, and perplexity a token."""

import math
from collections.abc import Sequence
from typing import Any

from khmer_assets.evaluation.engines import Engine
from khmer_assets.evaluation.measures import Measure
from khmer_assets.foundation.settings import digest_of
from khmer_assets.training.held_out import WINDOWS_A_BATCH
from khmer_assets.training.models import end_of_text_id

TASK = "held-out text"


def measure(engine: Engine, tokenizer: Any, language: str, texts: Sequence[str]) -> tuple[Measure, dict[str, float]]:
    """Bits a character with the sums of each text by its digest, and the figures of `held_out.held_out_quality`, which
    cuts texts into windows as here."""
    end = end_of_text_id(tokenizer)
    windows = []
    for number, ids in enumerate(tokenizer(list(texts), add_special_tokens=False)["input_ids"]):
        stream = [end, *ids]
        length = engine.context_length
        windows += [(number, stream[at : at + length + 1]) for at in range(0, len(stream) - 1, length)]
    windows.sort(key=lambda window: len(window[1]))
    nats = [0.0] * len(texts)
    for at in range(0, len(windows), WINDOWS_A_BATCH):
        batch = windows[at : at + WINDOWS_A_BATCH]
        for (number, _), own in zip(batch, engine.score([window for _, window in batch]), strict=True):
            nats[number] += own
    sums = {
        digest_of(text)[:16]: [own / math.log(2), float(len(text))]
        for own, text in zip(nats, texts, strict=True)
        if text
    }
    tokens = sum(len(window) - 1 for _, window in windows)
    characters = sum(map(len, texts))
    figures = {
        "bits_per_character": sum(nats) / math.log(2) / characters,
        "perplexity": math.exp(sum(nats) / tokens),
    }
    return Measure(f"{TASK} {language}", "bits a character", "ratio", sums, higher_is_better=False), figures
