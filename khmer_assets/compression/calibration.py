"""What pruning and quantization share: the calibration texts, the layers that they change, the run of llmcompressor."""

import random
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
from pydantic import BaseModel, Field

from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal

MERGED_MODEL = "merged_model"  # the figure that names the digest of what a variant was made from


class CalibrationSettings(Settings):
    """Calibration texts are half Khmer and half English; `calibration_length` is in tokens."""

    calibration_samples: PositiveInt = 256
    calibration_length: PositiveInt = 512


class CalibrationSpec(BaseModel):
    """`model` is a transformers folder and `mixture` the folder of training_mixture; `length` is in tokens."""

    model: Path
    mixture: Path
    samples: int = Field(gt=0)
    length: int = Field(gt=0)
    seed: int


def calibration_texts(mixture: Path, samples: int, seed: int) -> list[str]:
    """`samples` training texts, half Khmer and half English in turn; the same seed draws the same texts.

    Where one language has too few, the other fills up. Raises `Refusal` when there is no training text.
    """
    frame = pl.scan_parquet(mixture / "data.parquet").filter(pl.col("split") == "train")
    generator = random.Random(seed)
    drawn: dict[str, list[str]] = {}
    for language in ("khm", "eng"):
        documents = frame.filter(pl.col("language") == language)
        count = documents.select(pl.len()).collect().item()
        places = generator.sample(range(count), min(samples, count))
        drawn[language] = _texts_at(documents, sorted(places))
        generator.shuffle(drawn[language])
    khmer, english = drawn["khm"], drawn["eng"]
    from_khmer = min(len(khmer), max(samples - samples // 2, samples - len(english)))
    chosen = [khmer[:from_khmer], english[: samples - from_khmer]]
    if not any(chosen):
        raise Refusal(f"{mixture} has no Khmer or English text with split 'train' to calibrate on")
    longest = max(map(len, chosen))
    return [texts[place] for place in range(longest) for texts in chosen if place < len(texts)]


def _texts_at(documents: pl.LazyFrame, places: list[int]) -> list[str]:
    """The texts at these places of the documents' order by content hash and id, of which no more is held than asked.

    The hashes' beginnings are counted, which tells with which of them a place begins; only those are sorted.
    """
    order, beginning = ["content_hash", "id"], pl.col("content_hash").str.head(4)
    counts = documents.group_by(beginning=beginning).len().collect(engine="streaming").sort("beginning")
    first = dict(zip(counts["beginning"], counts["len"].cum_sum() - counts["len"], strict=True))
    firsts = list(first.values())
    sought = {counts["beginning"][bisect_right(firsts, place) - 1] for place in places}
    keys = documents.filter(beginning.is_in(sought)).select(*order).collect(engine="streaming").sort(order)
    begin_there = beginning.replace_strict(first, return_dtype=pl.Int64)
    keys = keys.filter((begin_there + pl.int_range(pl.len()).over(beginning)).is_in(places))
    drawn = documents.join(keys.lazy(), on=order, how="semi").select(*order, "text").collect(engine="streaming")
    return drawn.sort(order)["text"].to_list()


def compressible_layers(model: Any) -> dict[str, Any]:
    """The model's Linear layers by name, without the output head. Raises `Refusal` for GPT-2's Conv1D layers."""
    from torch.nn import Linear

    layers = {n: m for n, m in model.named_modules() if isinstance(m, Linear) and not n.endswith("lm_head")}
    if not layers:
        raise Refusal(
            f"a model of type {model.config.model_type!r} has no Linear layers to compress (GPT-2 has Conv1D); "
            f"set pretraining.architecture to qwen3, qwen2 or llama"
        )
    return layers


def compress(spec: CalibrationSpec, modifiers: list[Any], model: Any, run: PayloadRun) -> None:
    """Apply llmcompressor's `modifiers` to `model` with the calibration texts; save it and its tokenizer."""
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    texts = calibration_texts(spec.mixture, spec.samples, spec.seed)
    batches: Any = [tokenizer(t, truncation=True, max_length=spec.length, return_tensors="pt") for t in texts]
    run.log(f"calibrating on {len(texts)} texts, {sum(b['input_ids'].shape[1] for b in batches)} tokens")
    with _pageable_memory():
        oneshot(model=model, tokenizer=tokenizer, dataset=DataLoader(batches, batch_size=None), recipe=modifiers)
    model.save_pretrained(run.output)
    tokenizer.save_pretrained(run.output)


def load_for_compression(folder: Path) -> Any:
    """The model in bfloat16, the precision that its compressed form is saved and served in."""
    import torch

    return load_model(folder, torch.bfloat16)


@contextmanager
def _pageable_memory() -> Iterator[None]:
    """llmcompressor 0.14 pins memory for transfers to an accelerator, which fails where there is none."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if torch.accelerator.is_available():
        yield
    else:
        with patch.object(IntermediatesCache, "pin_memory", lambda *_: None):
            yield
