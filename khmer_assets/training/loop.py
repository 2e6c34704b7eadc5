"""The training loop: a schedule, an engine, exact resume, validation, progress and the plot of the loss.

All training runs it, on one process or on many. A run that is killed goes on from its last checkpoint with the same
batches, learning rates and random draws (dropout), and so, on as many processes, reaches the same losses as one that
was never stopped.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from khmer_assets.foundation import plots
from khmer_assets.training import hardware
from khmer_assets.training.alarms import accelerator_alarms, alarms, clipped_share, why_stop
from khmer_assets.training.engines import Engine
from khmer_assets.training.optimizers import Stepper
from khmer_assets.training.settings import TrainingSettings
from khmer_assets.training.sharding import engine
from resources.payload import PayloadRun, Refusal

DECAY = 0.2  # of the training, at the end of a constant learning rate
REPORT_SECONDS = 5.0
FETCH_STEPS = 10  # on an accelerator, which would else wait for the loss to be looked at in each step
CHECKPOINT = "checkpoint.pt"

Evaluate = Callable[[int, int], tuple[float, int]]
"""Gives the loss (the sum, in nats) and the number of tokens of a process's share of the validation texts: of so many
processes (the second argument) it is this one (the first, from 0). The model is in evaluation mode."""


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

    `curve` has a point a step: {"step", "loss" (nats a token), "learning_rate", "gradient_norm" (before it was
    clipped)}, and "validation_loss" where it was measured. `best_step` is the step of the lowest one, whose weights the
    model has; None when none was measured. `alarms` are what somebody should look at, a text a name. `figures` are
    tokens_per_second (of all processes), share_of_peak where it is known, training_memory_mb (of the accelerator where
    there is one), clipped (share of the steps), and optimizer_mb of each process's part of the optimizer's state; of an
    accelerator that tells them also gpu_load (%, mean), hottest_celsius, and energy_wh of all processes since the last
    start.
    """

    curve: list[dict[str, float]]
    best_step: int | None
    alarms: dict[str, str]
    figures: dict[str, float]


def train(
    model: torch.nn.Module,
    batch: Callable[[int], Sequence[dict[str, torch.Tensor]]],
    schedule: Schedule,
    run: PayloadRun,
    evaluate: Evaluate | None = None,
    optimizer: Stepper | None = None,
) -> TrainingResult:
    """Train `model` in place.

    `batch(step)` gives the step's micro-batches in order: the model's keyword arguments, on the CPU, with `labels`. It
    runs beside the step before, and draws nothing from torch's own random numbers. `evaluate` is asked every
    `evaluate_every` steps and at the end.
    `optimizer` is another than `Optimizer`. Raises `Refusal` when the loss stops being a number or explodes.

    Each of several processes calls it with the same arguments, and is alone again when it returns.
    """
    return _Training(model, schedule, run, evaluate, optimizer).finish(batch)


class _Training:
    def __init__(
        self,
        model: Any,
        schedule: Schedule,
        run: PayloadRun,
        evaluate: Evaluate | None,
        optimizer: Stepper | None,
    ):
        self.model, self.schedule, self.settings, self.run = model, schedule, schedule.settings, run
        self.evaluate = evaluate if self.settings.evaluate_every else None
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")  # TF32
        if self.settings.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.engine: Engine = engine(model, self.settings, optimizer)
        self.curve: list[dict[str, float]] = []
        self.waiting: list[tuple[float, torch.Tensor, torch.Tensor]] = []  # learning rate, loss and norm of a step
        self.tokens, self.reported_at, self.reported_steps = 0, 0.0, 0
        self.width = 0
        self.sensed: list[dict[str, float]] = []
        self.joules = 0.0

    def finish(self, batch: Callable[[int], Sequence[dict[str, torch.Tensor]]]) -> TrainingResult:
        """Train to the last step, or until patience is at its end."""
        self._resume()
        self.resumed = self.reported_steps = len(self.curve)
        self.started = time.monotonic()
        self.model.train()
        steps, fetch_steps = self.schedule.steps, FETCH_STEPS if torch.cuda.is_available() else 1
        for done, parts in _read_ahead(batch, self.resumed, steps):
            if self._out_of_patience():
                self.run.log(f"stopped before step {done}: {self.settings.patience} evaluations without a better one")
                break
            rate = self.schedule.learning_rate_at(done / (steps + 1))
            self.waiting.append((rate, *self.engine.update(parts, rate)))
            self.tokens += sum(part["input_ids"].numel() for part in parts)
            self.width = max(self.width, parts[0]["input_ids"].shape[1])
            last = done == steps
            evaluated = self.evaluate is not None and (last or done % (self.settings.evaluate_every or steps) == 0)
            saved = last or evaluated or done % self.settings.checkpoint_every == 0
            if saved or done % fetch_steps == 0:
                self._fetch()
            if evaluated:
                self._evaluate()
            if saved:
                self._save()
            if not self.waiting:
                self._report(last)
        return self._result()

    def _fetch(self) -> None:
        """Move what the last steps measured to the curve; refuse to go on where that is no use."""
        losses, norms = (torch.stack(values).tolist() for values in list(zip(*self.waiting, strict=True))[1:])
        for (rate, _, _), loss, norm in zip(self.waiting, losses, norms, strict=True):
            point = {"step": len(self.curve) + 1, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
            self.curve.append(point)
            if reason := why_stop(self.curve, self.settings):
                raise Refusal(reason)
        self.waiting.clear()

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self.model.eval()
        with torch.no_grad(), self.engine.whole():
            share = self.evaluate(self.engine.rank, self.engine.count)
        self.model.train()
        nats, tokens = self.engine.total(torch.tensor(share, dtype=torch.float64, device=self.engine.device)).tolist()
        loss = nats / tokens
        self.curve[-1]["validation_loss"] = loss
        step = len(self.curve)
        self.run.log(f"step {step}/{self.schedule.steps}  validation loss {loss:.3f}")
        self.run.metrics({step: {"validation_loss": loss}})
        if self._best_step() == step:
            self._write(self._best_file(step), {"model": self.engine.weights()})

    def _best_step(self) -> int | None:
        measured = [point for point in self.curve if "validation_loss" in point]
        return int(min(measured, key=lambda point: point["validation_loss"])["step"]) if measured else None

    def _out_of_patience(self) -> bool:
        best, patience = self._best_step(), self.settings.patience
        if best is None or patience is None:
            return False
        return sum("validation_loss" in point for point in self.curve[best:]) >= patience

    def _best_file(self, step: int) -> Path:
        return self.run.state / f"best-{step}.pt"

    def _save(self) -> None:
        random = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        state = {
            "model": self.engine.weights(),
            "optimizer": self.engine.optimizer_state(),
            "curve": json.dumps(self.curve),
            "random": self.engine.gathered(random),
        }
        self._write(self.run.state / CHECKPOINT, state)
        if self.engine.rank == 0:
            best = self._best_step()
            for file in self.run.state.glob("best-*.pt"):
                if best is None or file != self._best_file(best):
                    file.unlink()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        if self.engine.rank == 0:
            aside = path.with_suffix(".aside")
            try:
                torch.save(state, aside)
            except (OSError, RuntimeError) as error:  # torch's writer tells of a full disk as a RuntimeError
                aside.unlink(missing_ok=True)
                reason = str(error).splitlines()[0][:200]
                raise Refusal(
                    f"the checkpoint of step {len(self.curve)} cannot be written to {path.parent}: {reason}; free some "
                    "disk there and start again: training goes on from the checkpoint before"
                ) from None
            os.replace(aside, path)

    def _resume(self) -> None:
        path = self.run.state / CHECKPOINT
        if not path.exists():
            return
        # on the CPU first: the accelerator has no room for all of it twice, and may not be the one it was saved on
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        self.engine.load(state["model"], state["optimizer"])
        if len(state["random"]) == self.engine.count:
            of_processor, of_accelerator = state["random"][self.engine.rank]
            torch.set_rng_state(of_processor)
            if of_accelerator is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state(of_accelerator)
        self.curve = json.loads(state["curve"])
        self.run.log(f"resumed at step {len(self.curve)} of {self.schedule.steps}")

    def _figures(self) -> dict[str, float]:
        seconds = max(1e-9, time.monotonic() - self.started)
        figures = {"tokens_per_second": self.tokens / seconds, "training_memory_mb": hardware.memory_mb()}
        peak = hardware.peak_flops()
        if peak is not None:
            flops = figures["tokens_per_second"] * hardware.flops_a_token(self.model, self.width)
            figures["share_of_peak"] = flops / (peak * self.engine.count)
        return figures

    def _report(self, last: bool) -> None:
        if not last and time.monotonic() - self.reported_at <= REPORT_SECONDS:
            return
        if self.engine.count == 1:
            hardware.take_spared_core()
        since, self.reported_at, done = self.reported_at or self.started, time.monotonic(), len(self.curve)
        figures = self._figures()
        if told := hardware.sensors():
            self.sensed.append(told)
            self.joules += told["gpu_watts"] * (self.reported_at - since)
        to_go = (self.schedule.steps - done) * (self.reported_at - self.started) / (done - self.resumed)
        share = f"  {figures['share_of_peak']:.0%} of peak" if "share_of_peak" in figures else ""
        self.run.log(
            f"step {done}/{self.schedule.steps}  loss {self.curve[-1]['loss']:.3f}  "
            f"{figures['tokens_per_second']:,.0f} tokens/s{share}  {figures['training_memory_mb']:,.0f} MB  "
            f"{timedelta(seconds=round(to_go))} to go"
        )
        names = ("loss", "learning_rate", "gradient_norm")
        points = {int(p["step"]): {name: p[name] for name in names} for p in self.curve[self.reported_steps :: 5]}
        self.run.metrics(points | {done: points.get(done, {}) | figures | told})
        self.reported_steps = done

    def _result(self) -> TrainingResult:
        figures = self._figures() if self.tokens else {}
        figures["clipped"] = clipped_share(self.curve, self.settings)
        sizes = self.engine.gathered(self.engine.optimizer_bytes() / 2**20)
        if self.sensed:
            figures["hottest_celsius"] = max(told["gpu_celsius"] for told in self.sensed)
            figures["gpu_load"] = sum(told["gpu_load"] for told in self.sensed) / len(self.sensed)
            figures["energy_wh"] = sum(self.engine.gathered(self.joules)) / 3600
        figures |= {f"optimizer_mb_{rank}" if len(sizes) > 1 else "optimizer_mb": mb for rank, mb in enumerate(sizes)}
        if len(sizes) > 1:
            each = ", ".join(f"{mb:,.1f}" for mb in sizes)
            self.run.log(f"the optimizer's state takes {each} MB in the {len(sizes)} processes")
        self.engine.close()
        if self.settings.gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        best = self._best_step()
        if best is not None and best != len(self.curve):
            self._load_best(best)
        found = alarms(self.curve, self.settings, clipping_matters=self.engine.clipping_matters)
        for name, text in (found | accelerator_alarms(figures, self.settings)).items():
            self.run.log(f"alarm: {text}")
            self.run.tag(f"alarm.{name}", text)
        return TrainingResult(self.curve, best, found, figures)

    def _load_best(self, step: int) -> None:
        self.run.log(f"keeping the weights of step {step}, which had the lowest validation loss")
        state = torch.load(self._best_file(step), weights_only=True, map_location="cpu")
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(state["model"][name])


def _read_ahead(
    batch: Callable[[int], Sequence[dict[str, torch.Tensor]]], start: int, stop: int
) -> Iterator[tuple[int, Sequence[dict[str, torch.Tensor]]]]:
    """The number (from 1) and the micro-batches of each step; the next ones are made while a step is computed."""
    with ThreadPoolExecutor(1) as beside:
        upcoming = [beside.submit(batch, step) for step in range(start, min(start + 1, stop))]
        for step in range(start, stop):
            parts = upcoming.pop().result()
            upcoming += [beside.submit(batch, later) for later in range(step + 1, min(step + 2, stop))]
            yield step + 1, parts


def loss_plot(curve: list[dict[str, float]]) -> Any:
    """The loss a step, in nats a token, and the validation loss where it was measured."""
    figure = plots.new_figure()
    axes = figure.subplots()
    axes.plot([point["step"] for point in curve], [point["loss"] for point in curve], linewidth=1, label="training")
    measured = [point for point in curve if "validation_loss" in point]
    if measured:
        losses = [point["validation_loss"] for point in measured]
        axes.plot([point["step"] for point in measured], losses, marker="o", markersize=3, label="validation")
        axes.legend()
    axes.set(xlabel="step", ylabel="loss (nats a token)", title="Training loss")
    axes.grid(alpha=0.3)
    return figure
