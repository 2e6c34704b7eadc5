"""Supervised finetuning: a LoRA adapter that learns the assistant's answers, and nothing but the answers."""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from khmer_assets.foundation import plots
from khmer_assets.foundation.settings import PositiveInt, Ratio
from khmer_assets.instructions.chats import chats_of
from khmer_assets.training.held_out import measured, token_nats
from khmer_assets.training.settings import TrainingSettings
from resources.payload import PayloadRun, Refusal


class Finetuning(TrainingSettings):
    """LoRA on every Linear layer but the output head. A step is `batch_size` chats. `context_length`: the longest chat,
    in tokens; null for that of pretraining."""

    context_length: Annotated[int, Field(ge=16)] | None = None
    rank: Annotated[int, Field(ge=1, le=512)]
    alpha: PositiveInt
    dropout: Ratio
    epochs: PositiveInt


IGNORED = -100
VALIDATION_CHATS = 200  # that are scored at the end


class Spec(BaseModel):
    """Folders of the model to be adapted and of its chats, of which those that fit `context_length` are learned."""

    base: Path
    chats: Path
    settings: Finetuning
    context_length: int
    seed: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write a peft adapter folder and `training.json` with the model's digest, loss curve and validation loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    from khmer_assets.training import models
    from khmer_assets.training.loop import Schedule, loss_plot, train

    settings = spec.settings
    tokenizer = AutoTokenizer.from_pretrained(spec.base)
    torch.manual_seed(spec.seed)
    model = get_peft_model(
        models.load_model(spec.base),
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules="all-linear",
            trainable_token_indices=tokenizer.all_special_ids if marks_are_new(spec.base) else None,
            task_type="CAUSAL_LM",
        ),
    ).to(models.device())
    examples = {
        split: encode_chats(tokenizer, chats_of(spec.chats, split), spec.context_length)
        for split in ("train", "validation")
    }
    if len(examples["train"]) < settings.batch_size:
        raise Refusal(
            f"there are {len(examples['train'])} training chats that fit {spec.context_length} tokens, fewer "
            f"than finetuning.batch_size ({settings.batch_size}); add chats or lower it"
        )
    steps_an_epoch = len(examples["train"]) // settings.batch_size
    schedule = Schedule(settings, steps=steps_an_epoch * settings.epochs)
    lengths = np.array([len(ids) for ids, _ in examples["train"]])
    run.log(f"{len(examples['train']):,} chats, {schedule.steps:,} steps")
    run.parameters(**settings.model_dump(), steps=schedule.steps, seed=spec.seed)

    def batch(step: int) -> list[dict[str, torch.Tensor]]:
        epoch, index = divmod(step, steps_an_epoch)
        chosen = batches_of_epoch(lengths, settings.batch_size, (spec.seed, epoch))[index]
        parts = np.split(
            chosen, range(settings.micro_batch_size or len(chosen), len(chosen), settings.micro_batch_size or 1)
        )
        return [padded([examples["train"][i] for i in part], tokenizer.pad_token_id) for part in parts]

    curve = train(model, batch, schedule, run).curve
    model.eval()
    model.save_pretrained(run.output)
    losses, not_scored = measured(
        lambda: [answer_loss(model, example) for example in examples["validation"][:VALIDATION_CHATS]]
    )
    validation_loss = float(np.mean(losses)) if losses else float("nan")
    training = {"base": spec.base.name, "curve": curve, "validation_loss": validation_loss}
    (run.output / "training.json").write_text(json.dumps(training | ({"not_scored": not_scored} if not_scored else {})))
    run.metrics(schedule.steps, validation_loss=validation_loss)
    run.keep_model(run.output)
    return {
        "steps": schedule.steps,
        "train_loss": float(np.mean([point["loss"] for point in curve[-20:]])),
        "validation_loss": validation_loss,
        "loss_curve": plots.as_markdown(loss_plot(curve)),
        **({"not_scored": not_scored} if not_scored else {}),
    }


def marks_are_new(base: Path) -> bool:
    """Whether the model has never seen the marks of a chat. Their embeddings are then trained too: as they were made at
    random, no adapter of the layers could make the end of a turn likely."""
    if (base / "merge.json").exists():
        return False
    told = base / "base.json"  # of an open model
    return bool(json.loads(told.read_text())["chat_marks_are_new"]) if told.exists() else True


def answer_loss(model: Any, example: tuple[list[int], list[int]]) -> float:
    """The mean loss, in nats a token, of what the assistant says in a chat of `encode_chats`."""
    import torch

    ids, labels = (torch.tensor([part], device=model.device) for part in example)
    return float(token_nats(model, ids)[labels[:, 1:] != IGNORED].mean())


def encode_chats(
    tokenizer: Any, chats: list[list[dict[str, str]]], context_length: int
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels a chat; a label is the id where the assistant speaks and -100 elsewhere.

    What the assistant says ends with the template's end of the turn, so that the model learns to stop. Chats longer
    than `context_length` tokens are left out.
    """
    texts, spans = [], []
    for messages in chats:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        spoken = []
        for position, message in enumerate(messages):
            if message["role"] == "assistant":
                before = tokenizer.apply_chat_template(messages[:position], tokenize=False, add_generation_prompt=True)
                after = tokenizer.apply_chat_template(messages[: position + 1], tokenize=False).rstrip()
                if not text.startswith(after) or not after.startswith(before):
                    raise Refusal(
                        "the tokenizer's chat template rewrites earlier turns, so answers cannot be told apart"
                    )
                spoken.append((len(before), len(after)))
        texts.append(text)
        spans.append(spoken)
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    examples = []
    for ids, offsets, spoken in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True):
        if len(ids) <= context_length:
            labels = [
                identity if any(start <= begin and end <= stop for start, stop in spoken) else IGNORED
                for identity, (begin, end) in zip(ids, offsets, strict=True)
            ]
            examples.append((ids, labels))
    return examples


def batches_of_epoch(lengths: np.ndarray, batch_size: int, seed: tuple[int, int]) -> np.ndarray:
    """Which examples make each batch: an array of shape (batches, batch_size), other for every seed.

    Examples of one batch are of similar length, so that little is padding; a rest that fills no batch waits for
    another epoch.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))[: len(lengths) // batch_size * batch_size]
    order = order[np.argsort(lengths[order], kind="stable")]
    return random.permutation(order.reshape(-1, batch_size))


def padded(examples: list[tuple[list[int], list[int]]], pad: int) -> dict[str, Any]:
    """The model's arguments for a batch of examples, padded on the right."""
    import torch

    width = max(len(ids) for ids, _ in examples)
    return {
        "input_ids": torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in examples]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in examples]),
        "labels": torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in examples]),
    }
