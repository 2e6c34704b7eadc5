"""The training loop: a schedule, an optimizer, exact resume and the plot of the loss. All training runs it.

A run that is killed goes on from its last checkpoint with the same batches, learning rates and random draws (dropout),
and so reaches the same losses as one that was never stopped.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch

from khmer_assets.foundation import plots
from khmer_assets.training.models import Precision, autocast
from khmer_assets.training.muon import Muon
from khmer_assets.training.settings import TrainingSettings
from resources.payload import PayloadRun, Refusal

GRADIENT_CLIP = 1.0
MATRIX_RATE = 2.0
DECAY = 0.2
REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Schedule:
    """A training of `steps` steps."""

    settings: TrainingSettings
    steps: int

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when a share of `progress` (0 to 1) of the training is done: after the warm-up it falls to
        zero, linearly (Bergsma et al., 2025), along a cosine (Loshchilov and Hutter, 2017) or, linearly too, over the
        last `DECAY` of the training (Hägele et al., 2024)."""
        highest, warmup = self.settings.learning_rate, self.settings.warmup_ratio
        if progress < warmup:
            return highest * progress / warmup
        rest = (1 - progress) / (1 - warmup) if warmup < 1 else 0.0
        match self.settings.schedule:
            case "linear":
                return highest * rest
            case "cosine":
                return highest * (1 - math.cos(math.pi * rest)) / 2
            case "constant_then_decay":
                return highest * min(1.0, (1 - progress) / DECAY)


@dataclass(frozen=True)
class TrainingResult:
    """What a training tells of itself.

    `curve` has a point a step: {"step", "loss" (nats a token), "learning_rate", "gradient_norm"}, and
    "validation_loss" where it was measured. `best_step` is the step of the lowest one, whose weights the model has;
    None when none was measured. `alarms` are what somebody should look at, a text a name.
    """

    curve: list[dict[str, float]]
    best_step: int | None
    alarms: dict[str, str]


class Stepper(Protocol):
    """What a training step needs of an optimizer."""

    def step(self, learning_rate: float) -> None:
        """Update with the gradients at hand, then forget them."""


class Optimizer:
    """Muon for the hidden matrices, AdamW for embeddings, heads and vectors; AdamW alone for a LoRA adapter.

    Learning rates are given a step; Muon's is `MATRIX_RATE` times AdamW's, for its updates have another scale.
    """

    def __init__(self, model: torch.nn.Module, schedule: Schedule):
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        adapter = any("lora_" in name for name in trainable)
        matrices = [p for p in trainable.values() if p.dim() == 2 and id(p) not in embeddings and not adapter]
        chosen = {id(p) for p in matrices}
        others = [p for p in trainable.values() if id(p) not in chosen]
        self.adamw = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
        self.muon = Muon(matrices, lr=0.0, weight_decay=schedule.settings.weight_decay) if matrices else None

    def step(self, learning_rate: float) -> None:
        """Update with the gradients at hand, then forget them."""
        for optimizer, rate in ((self.adamw, learning_rate), (self.muon, learning_rate * MATRIX_RATE)):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return {"adamw": self.adamw.state_dict(), "muon": self.muon.state_dict() if self.muon else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.adamw.load_state_dict(state["adamw"])
        if self.muon:
            self.muon.load_state_dict(state["muon"])


def train(
    model: torch.nn.Module,
    batch: Callable[[int], Sequence[dict[str, torch.Tensor]]],
    schedule: Schedule,
    run: PayloadRun,
    evaluate: Callable[[], float] | None = None,
) -> TrainingResult:
    """Train `model` in place.

    `batch(step)` gives the step's micro-batches in order: the model's keyword arguments, on the CPU. `evaluate` gives
    the validation loss in nats a token; the model is then in evaluation mode. Raises `Refusal` when the loss stops
    being a number.
    """
    optimizer = Optimizer(model, schedule)
    curve = _resume(model, optimizer, run.state / "checkpoint.pt")
    if curve:
        run.log(f"resumed at step {len(curve)} of {schedule.steps}")
    model.train()
    started, reported = time.monotonic(), 0.0
    tokens, resumed, unreported = 0, len(curve), len(curve)
    for step in range(resumed, schedule.steps):
        [inputs] = [{name: value.to(model.device) for name, value in part.items()} for part in batch(step)]
        rate = schedule.learning_rate_at((step + 1) / (schedule.steps + 1))
        loss = training_step(model, optimizer, inputs, rate, schedule.settings.precision)
        if loss != loss:
            raise Refusal(
                f"the loss of step {step + 1} is not a number; lower learning_rate ({schedule.settings.learning_rate})"
            )
        curve.append({"step": step + 1, "loss": loss, "learning_rate": rate})
        tokens += inputs["input_ids"].numel()
        last = step + 1 == schedule.steps
        if last or (step + 1) % schedule.settings.checkpoint_every == 0:
            _save(model, optimizer, curve, run.state / "checkpoint.pt")
        if last or time.monotonic() - reported > REPORT_SECONDS:
            reported = time.monotonic()
            speed = tokens / (reported - started)
            to_go = (schedule.steps - step - 1) * (reported - started) / (step + 1 - resumed)
            pace = f"{speed:,.0f} tokens/s  {timedelta(seconds=round(to_go))} to go"
            run.log(f"step {step + 1}/{schedule.steps}  loss {loss:.3f}  {pace}")
            for point in curve[unreported::5]:
                run.metrics(int(point["step"]), loss=point["loss"], learning_rate=point["learning_rate"])
            unreported = len(curve)
    return TrainingResult(curve, None, {})


def training_step(
    model: torch.nn.Module,
    optimizer: Stepper,
    inputs: dict[str, torch.Tensor],
    learning_rate: float,
    precision: Precision,
) -> float:
    """One forward and backward pass and one update; returns the loss in nats a token."""
    with autocast(precision):
        loss = model(**inputs, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
    optimizer.step(learning_rate)
    return float(loss.detach())


def _trainable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.data for name, p in model.named_parameters() if p.requires_grad}


def _save(model: torch.nn.Module, optimizer: Optimizer, curve: list[dict[str, float]], path: Path) -> None:
    state = {
        "model": _trainable(model),
        "optimizer": optimizer.state_dict(),
        "curve": json.dumps(curve),
        "random": torch.get_rng_state(),
        "random_of_accelerators": torch.cuda.get_rng_state_all(),
    }
    aside = path.with_suffix(".aside")
    torch.save(state, aside)
    os.replace(aside, path)


def _resume(model: torch.nn.Module, optimizer: Optimizer, path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    # on the CPU first: the accelerator has no room for all of it twice, and may not be the one that it was saved on
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    for name, value in _trainable(model).items():
        value.copy_(state["model"][name])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    if torch.cuda.device_count() == len(state["random_of_accelerators"]):
        torch.cuda.set_rng_state_all(state["random_of_accelerators"])
    curve: list[dict[str, float]] = json.loads(state["curve"])
    return curve


def loss_plot(curve: list[dict[str, float]]) -> Any:
    """The loss a step, in nats a token."""
    figure = plots.new_figure()
    axes = figure.subplots()
    axes.plot([point["step"] for point in curve], [point["loss"] for point in curve], linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title="Training loss")
    axes.grid(alpha=0.3)
    return figure
