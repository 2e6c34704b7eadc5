"""What pruning and quantization share: the calibration texts, the layers that they change, the run of llmcompressor."""

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from unittest.mock import patch

import polars as pl
from pydantic import BaseModel, Field

from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    import torch

LANGUAGES = ("khm", "eng")
MERGED_MODEL = "merged_model"  # the figure that names the digest of what a variant was made from

T = TypeVar("T")


class CalibrationSettings(Settings):
    """Half of the calibration samples are texts and half chats, of each half Khmer and half English;
    `calibration_length` is in tokens."""

    calibration_samples: PositiveInt = 256
    calibration_length: PositiveInt = 512


class CalibrationSpec(BaseModel):
    """`model` is a transformers folder, `mixture` the folder of training_mixture and `chats` that of chat_dataset;
    `length` is in tokens."""

    model: Path
    mixture: Path
    chats: Path
    samples: int = Field(gt=0)
    length: int = Field(gt=0)
    seed: int


def calibration_samples(spec: CalibrationSpec, tokenizer: Any) -> list[str]:
    """`spec.samples` of what the model was trained on: texts and chats in turn, the chats as its template shows them.

    Where there are too few of one, the other fills up. Raises `Refusal` when there is no training text.
    """
    shown = [_shown(tokenizer, messages) for messages in _chats(spec)] if tokenizer.chat_template else []
    chats = [text for text in shown if text is not None]
    texts = calibration_texts(spec.mixture, max(spec.samples - len(chats), spec.samples - spec.samples // 2), spec.seed)
    return _in_turn(texts, chats[: spec.samples - len(texts)])


def calibration_rows(spec: CalibrationSpec, tokenizer: Any) -> list[dict[str, "torch.Tensor"]]:
    """The calibration samples as a model's arguments: input_ids and position_ids of shape (1, tokens), with as many
    samples in a row as `spec.length` has room for. Positions start again with each sample, by which transformers
    keeps them apart.
    """
    import torch

    rows: list[list[list[int]]] = []
    for ids in tokenizer(calibration_samples(spec, tokenizer), truncation=True, max_length=spec.length)["input_ids"]:
        if not rows or sum(map(len, rows[-1])) + len(ids) > spec.length:
            rows.append([])
        rows[-1].append(ids)
    return [
        {
            "input_ids": torch.tensor([[identity for ids in row for identity in ids]]),
            "position_ids": torch.tensor([[place for ids in row for place in range(len(ids))]]),
        }
        for row in rows
    ]


def _chats(spec: CalibrationSpec) -> list[list[dict[str, str]]]:
    """At most `spec.samples` training chats, half Khmer and half English in turn, as far as there are any."""
    frame = pl.scan_parquet(spec.chats / "data.parquet").filter(pl.col("split") == "train")
    keys = frame.select("content_hash", "language").collect().sort("content_hash", "language")
    drawn = []
    for language in LANGUAGES:
        hashes = keys.filter(language=language)["content_hash"].to_list()
        chosen = random.Random(spec.seed).sample(hashes, min(spec.samples, len(hashes)))
        chats = frame.filter(pl.col("content_hash").is_in(chosen)).select("content_hash", "messages").collect()
        by_hash = dict(chats.iter_rows())
        drawn.append([by_hash[one] for one in chosen])
    return _in_turn(*drawn)[: spec.samples]


def _shown(tokenizer: Any, messages: list[dict[str, str]]) -> str | None:
    """The chat in the model's form, if it has one for such a chat; the token before every text is left to the
    tokenizer."""
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template raises what it likes; finetuning has set the chat aside with the reason
        return None
    return text.removeprefix(tokenizer.bos_token or "")


def _in_turn(*lists: Sequence[T]) -> list[T]:
    """One of each list in turn, until all are at their ends."""
    return [one for group in zip_longest(*lists, fillvalue=None) for one in group if one is not None]


def calibration_texts(mixture: Path, samples: int, seed: int) -> list[str]:
    """`samples` training texts, half Khmer and half English in turn; the same seed draws the same texts.

    Where one language has too few, the other fills up. Raises `Refusal` when there is no training text.
    """
    frame = pl.scan_parquet(mixture / "data.parquet").filter(pl.col("split") == "train")
    generator = random.Random(seed)
    drawn: dict[str, list[str]] = {}
    for language in LANGUAGES:
        documents = frame.filter(pl.col("language") == language)
        count = documents.select(pl.len()).collect().item()
        places = generator.sample(range(count), min(samples, count))
        drawn[language] = _texts_at(documents, sorted(places))
        generator.shuffle(drawn[language])
    khmer, english = drawn.values()
    from_khmer = min(len(khmer), max(samples - samples // 2, samples - len(english)))
    chosen = _in_turn(khmer[:from_khmer], english[: samples - from_khmer])
    if not chosen:
        raise Refusal(f"{mixture} has no Khmer or English text with split 'train' to calibrate on")
    return chosen


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
    """Apply llmcompressor's `modifiers` to `model` with the calibration samples."""
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    rows: Any = calibration_rows(spec, tokenizer)
    run.log(f"calibrating on {spec.samples} texts, {sum(row['input_ids'].shape[1] for row in rows)} tokens")
    with _pageable_memory():
        oneshot(model=model, tokenizer=tokenizer, dataset=DataLoader(rows, batch_size=None), recipe=modifiers)


def save(spec: CalibrationSpec, model: Any, folder: Path) -> None:
    """Save the compressed model with the tokenizer of the one that it was made from."""
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(spec.model).save_pretrained(folder)


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
