"""Supervised finetuning: a LoRA adapter that learns the assistant's answers, and nothing but the answers."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from khmer_assets.finetuning import lora, memory, packing
from khmer_assets.finetuning.encoding import Encoded, Example, TooLong, encode_chats
from khmer_assets.finetuning.lora import Lora
from khmer_assets.foundation import plots
from khmer_assets.foundation.settings import PositiveInt
from khmer_assets.instructions.chats import chats_of
from khmer_assets.pretraining import packing as text
from khmer_assets.training.held_out import measured
from khmer_assets.training.models import IGNORED, Precision, autocast
from khmer_assets.training.settings import TrainingSettings
from resources.payload import PayloadRun, Refusal


class Finetuning(TrainingSettings, Lora):
    """A LoRA adapter and its training: `epochs` times all chats.

    A step is `batch_size` chats. `micro_batch_size` of them are in memory at a time; they share one row without seeing
    each other, so that nothing is padding. `context_length` is in tokens, null for that of pretraining. A chat that is
    longer is set aside, or truncated (it then has no end to learn).

    `replay`: of the tokens that are learned, the share that is text of pretraining, in which the model would else be
    worse and worse the more chats it learns.
    """

    context_length: Annotated[int, Field(ge=16)] | None = None
    epochs: PositiveInt
    too_long: TooLong = "set aside"
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.0


DISTRIBUTED = True
VALIDATION_CHATS = 200  # that are scored


class Spec(BaseModel):
    """`base` is any transformers folder with a chat template, `chats` that of chat_dataset, `packed` that of
    packed_dataset, whose text is replayed; the context in tokens.

    Where base.json does not say that the model knows the marks of a chat, their embeddings are trained too.
    """

    base: Path
    chats: Path
    packed: Path | None = None
    settings: Finetuning
    context_length: int
    seed: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write a peft adapter folder and `training.json`: the base's name, quantization, loss curve, validation loss, and
    what became of the chats.

    Raises `Refusal` when too few chats can be trained on, the settings do not fit the base, a step does not fit the
    memory, or the loss stops being a number.
    """
    import torch
    from transformers import AutoTokenizer

    from khmer_assets.training import engines
    from khmer_assets.training.loop import Schedule, loss_plot, train

    settings = spec.settings
    tokenizer = AutoTokenizer.from_pretrained(spec.base)
    chats = {split: chats_of(spec.chats, split) for split in ("train", "validation")}
    encoded = {split: encode_chats(tokenizer, some, spec.context_length, settings.too_long)
               for split, some in chats.items()}  # fmt: skip
    reports = {split: encoded[split].report(some) for split, some in chats.items()}
    _log_reports(reports, run)
    examples = encoded["train"].examples
    _require_enough(encoded["train"], settings.batch_size, spec.context_length)

    torch.manual_seed(spec.seed)
    base = lora.load_base(spec.base, settings.quantization, settings.precision)
    _require_own_tokenizer(base, examples, spec.base)
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    new_tokens = tokenizer.all_special_ids if lora.chat_marks_are_new(spec.base) else None
    model = lora.adapted(base, settings, new_tokens)

    steps_an_epoch = len(examples) // settings.batch_size
    schedule = Schedule(settings, steps=steps_an_epoch * settings.epochs)

    size = engines.micro_batch_size(settings)
    replayed = _replayed(spec, examples)

    def batch(step: int, packs: bool) -> list[dict[str, torch.Tensor]]:
        epoch, index = divmod(step, steps_an_epoch)
        chosen = packing.chats_of_epoch(len(examples), settings.batch_size, (spec.seed, epoch))[index]
        parts = packing.micro_batches([examples[i] for i in chosen], size)
        parts[-1] += replayed(step)  # to the shortest chats
        return [packing.packed(part) if packs else packing.padded(part, pad) for part in parts]

    validation = encoded["validation"].examples[:VALIDATION_CHATS]

    def evaluate(rank: int, count: int) -> tuple[float, int]:
        return answer_nats(model, validation[rank::count], settings.precision)

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    run.log(f"{len(examples):,} chats, {schedule.steps:,} steps, {trained:,} weights to train")
    run.parameters(**settings.model_dump(), steps=schedule.steps, seed=spec.seed)
    needed = _require_memory(model, [*examples, *replayed(0)], size, settings)
    with packing.keeps_apart(base, examples, settings.precision) as difference:
        packs = difference is not None
        run.log(
            "chats share rows" if packs else "this architecture's attention cannot keep chats apart: they are padded"
        )
        try:
            result = train(model, partial(batch, packs=packs), schedule, run, evaluate if validation else None)
        except torch.OutOfMemoryError as error:
            raise memory.too_large(str(error).split(". ")[0], size, settings) from None
    if not run.leads:
        return {}
    model.eval()
    model.save_pretrained(run.output)
    scored = partial(answer_loss, model, validation, settings.precision)
    validation_loss, not_scored = measured(scored) if validation else (None, "there is no validation chat")
    told = {"not_scored": not_scored} if not_scored else {}
    bits = None if validation_loss is None else _bits_per_character(validation_loss, validation, tokenizer)
    training = {
        "base": spec.base.name,
        "model": lora.base_record(spec.base).get("model", "pretrained here"),
        "quantization": settings.quantization,
        "curve": result.curve,
        "best_step": result.best_step,
        "alarms": result.alarms,
        "validation_loss": validation_loss,
        "validation_bits_per_character": bits,
        "packed": packs,
        "chats": reports,
        **told,
    }
    (run.output / "training.json").write_text(json.dumps(training, ensure_ascii=False))
    if validation_loss is not None:
        run.metrics({len(result.curve): {"validation_loss": validation_loss}})
    run.keep_model(run.output)
    return {
        "steps": len(result.curve),
        "train_loss": float(np.mean([point["loss"] for point in result.curve[-20:]])),
        "validation_loss": float("nan") if validation_loss is None else validation_loss,
        "loss_curve": plots.as_markdown(loss_plot(result.curve)),
        "chats_set_aside": sum(report["chats"] - report["trained"] for report in reports.values()),
        "least_memory_mb": round(needed / 1e6),
        **result.figures,
        **told,
    }


def answer_loss(model: Any, examples: Sequence[Example], precision: Precision) -> float:
    """The mean loss of what the assistant says in the examples, in nats a token of all answers together."""
    nats, tokens = answer_nats(model, examples, precision)
    return nats / tokens


def answer_nats(model: Any, examples: Sequence[Example], precision: Precision) -> tuple[float, int]:
    """The loss of all that the assistant says in the examples, in nats, and of how many tokens."""
    import torch

    nats, tokens = 0.0, 0
    for example in examples:
        ids, labels = (torch.tensor(part, device=model.device) for part in example)
        [places] = (labels[1:] != IGNORED).nonzero(as_tuple=True)  # of others, the logits would fill the memory
        with torch.inference_mode(), autocast(precision):
            logits = model(input_ids=ids[None], use_cache=False, logits_to_keep=places).logits[0]
        nats += float(torch.nn.functional.cross_entropy(logits.float(), labels[places + 1], reduction="sum"))
        tokens += len(places)
    return nats, tokens


def _bits_per_character(loss: float, examples: Sequence[Example], tokenizer: Any) -> float | None:
    """Of a loss in nats a token, what it is of the answers' characters; None where they have none."""
    answers = [[label for label in example.labels[1:] if label != IGNORED] for example in examples]
    characters = sum(len(tokenizer.decode(answer, skip_special_tokens=True)) for answer in answers)
    return loss * sum(map(len, answers)) / math.log(2) / characters if characters else None


def _log_reports(reports: dict[str, dict[str, Any]], run: PayloadRun) -> None:
    for split, report in reports.items():
        for rule, found in report["set_aside"].items():
            run.log(f"{split}: {found['chats']:,} chats set aside ({rule}), such as: {found['examples'][0]['reason']}")
        for what in ("truncated", "last_turn_only", "endless"):
            if report[what]:
                run.log(f"{split}: {report[what]:,} of {report['trained']:,} chats are {what.replace('_', ' ')}")


def _replayed(spec: Spec, examples: Sequence[Example]) -> Callable[[int], list[Example]]:
    """Gives the text that each step learns beside its chats: as many sequences of the packed text, and as long, as
    `replay` asks for on the average."""
    share = spec.settings.replay
    if not share:
        return lambda step: []
    if spec.packed is None:
        raise Refusal(f"finetuning.replay is {share}, but there is no text of pretraining; set replay to 0")
    learned = sum(label != IGNORED for example in examples for label in example.labels) / len(examples)
    tokens = round(learned * spec.settings.batch_size * share / (1 - share))
    count = math.ceil(tokens / spec.context_length) or 1
    stream = text.open_stream(spec.packed)
    width = min(max(2, round(tokens / count)), len(stream))
    sequences = text.PackedSequences(stream, width, count, spec.seed)
    return lambda step: [Example(ids, ids) for ids in sequences.batch(step).tolist()]


def _require_enough(encoded: Encoded, batch_size: int, context_length: int) -> None:
    if len(encoded.examples) < batch_size:
        reasons = "; ".join(sorted({aside.reason for aside in encoded.set_aside})[:3]) or "there are no others"
        raise Refusal(
            f"there are {len(encoded.examples)} training chats that fit {context_length} tokens, fewer than "
            f"finetuning.batch_size ({batch_size}); add chats or lower it. Set aside: {len(encoded.set_aside)} "
            f"({reasons})"
        )


def _require_own_tokenizer(base: Any, examples: Sequence[Example], folder: Path) -> None:
    rows, largest = base.get_input_embeddings().num_embeddings, max(max(example.ids) for example in examples)
    if largest >= rows:
        raise Refusal(
            f"the tokenizer in {folder} is not the model's: it gives the id {largest}, and there are {rows} "
            f"embeddings; bring the folder with the model's own tokenizer"
        )


def _require_memory(model: Any, examples: Sequence[Example], size: int, settings: Finetuning) -> int:
    """The memory of the largest step, in bytes."""
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    longest = sorted((len(example.ids) for example in examples), reverse=True)
    tokens = sum(longest[:size])
    needed = memory.needed_bytes(model, tokens, settings.precision)
    model.eval()
    free = memory.free_bytes(model.device)
    if needed > free:
        needs = f"it needs at least {needed / memory.GB:.1f} GB for {tokens:,} tokens"
        raise memory.too_large(f"{needs}, and {free / memory.GB:.1f} GB are free", size, settings)
    return needed
