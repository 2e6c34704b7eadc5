"""What updates a model's weights: one process, or several that share the work (DDP). Those that also share weights or
the optimizer's state are in `sharding.py`. The loop does not see which.

Processes are those that torchrun has started (`resources/compute.py`). Their checkpoints are alike: what any number
of them has written, any other number can load.
"""

import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from khmer_assets.training.loss import TokenLoss, label_tokens
from khmer_assets.training.models import device
from khmer_assets.training.optimizers import Optimizer, Stepper
from khmer_assets.training.settings import TrainingSettings

Parts = Sequence[dict[str, torch.Tensor]]


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def micro_batch_size(settings: TrainingSettings) -> int:
    """Of how many sequences a micro-batch is made: a process's whole share of the batch, unless it is set."""
    return settings.micro_batch_size or math.ceil(settings.batch_size / processes())


class Engine:
    """One process that trains alone; the base of the others."""

    rank, count = 0, 1

    def __init__(self, model: Any, settings: TrainingSettings, optimizer: Stepper | None = None):
        self.model, self.settings = model, settings
        self.device = device()
        _keep_trainable(model)
        self.loss: torch.nn.Module = TokenLoss(model, settings.precision)
        self.optimizer = optimizer
        self.prepare()

    def prepare(self) -> None:
        """Make what the first update needs."""
        self.optimizer = self.optimizer or Optimizer(self.model, self.settings)

    def update(self, parts: Parts, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One update with a step's micro-batches; the loss (nats a token, over all of them) and the gradient's norm
        before it was clipped, still on the device.

        A process takes every `count`th micro-batch, beginning with its own rank. Each token of the step has the same
        weight in the loss, whoever has computed it.
        """
        labels = [label_tokens(part["labels"]) for part in parts]
        tokens = max(1, sum(len(targets) for _, targets in labels))
        turns = range(self.rank, len(parts) + -len(parts) % self.count, self.count)
        total = torch.zeros((), device=self.device)
        for turn in turns:
            # who has no micro-batch left in the last turn takes the first one's inputs without any label
            at, (positions, targets) = (turn, labels[turn]) if turn < len(parts) else (0, _none_of(labels[0]))
            inputs = {name: self._moved(value) for name, value in parts[at].items() if name != "labels"}
            last = turn == turns[-1]
            with nullcontext() if last else self.without_exchange():
                nats = self.loss(self._moved(positions), self._moved(targets), **inputs)
                self.backward(nats * (self.count / tokens), last)
            total += nats.detach() / tokens
        return self.total(total), self.apply(learning_rate)

    def without_exchange(self) -> Any:
        """The context of a backward pass whose gradients stay in this process."""
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add to the gradients; `last` in a step."""
        loss.backward()  # type: ignore[no-untyped-call]

    def apply(self, learning_rate: float) -> torch.Tensor:
        """Clip and update; gives the gradient's norm before."""
        norm = torch.nn.utils.clip_grad_norm_(self.trainable().values(), self.settings.max_gradient_norm)
        assert self.optimizer is not None
        self.optimizer.step(learning_rate)
        return norm

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return value

    def whole(self) -> AbstractContextManager[None]:
        """Within it, each process has all weights, and computes with them without the others."""
        return nullcontext()

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes."""
        return [value]

    @property
    def clipping_matters(self) -> bool:
        """Whether an update's size depends on how gradients are clipped; see `alarms`."""
        return not (isinstance(self.optimizer, Optimizer) and self.optimizer.muon is not None)

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def weights(self) -> dict[str, torch.Tensor]:
        """What is trained, to be saved. All processes ask for it at once."""
        return {name: p.data for name, p in self.trainable().items()}

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state, to be saved. All processes ask for it at once."""
        assert self.optimizer is not None
        return self.optimizer.state_dict()

    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any] | None) -> None:
        """Go on from saved weights, and from an optimizer's state where one is given."""
        with torch.no_grad():
            for name, parameter in self.trainable().items():
                parameter.copy_(weights[name])
        if optimizer is not None:
            assert self.optimizer is not None
            self.optimizer.load_state_dict(optimizer)

    def optimizer_bytes(self) -> int:
        """What this process keeps of the optimizer's state."""
        return size_of(self.optimizer_state())

    def close(self) -> None:
        """End what the processes have in common; each goes on alone, with the whole model."""

    def _moved(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.device, non_blocking=True)


class Together(Engine):
    """Several processes, each with the whole model and optimizer, that exchange gradients (DDP)."""

    def __init__(self, model: Any, settings: TrainingSettings, optimizer: Stepper | None = None):
        from accelerate import Accelerator

        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.rank, self.count = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(torch.initial_seed() + self.rank)  # each drops out others
        super().__init__(model, settings, optimizer)
        self.device = self.accelerator.device

    def prepare(self) -> None:
        """Wrap the loss, so that the last backward pass of a step exchanges the gradients."""
        super().prepare()
        self.loss = self.accelerator.prepare_model(self.loss)

    def without_exchange(self) -> Any:
        """The context of a backward pass whose gradients stay in this process."""
        return self.accelerator.no_sync(self.loss)

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(value, reduction="sum")

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes."""
        from accelerate.utils import gather_object

        return gather_object([value])

    def close(self) -> None:
        """End what the processes have in common; each goes on alone, with the whole model."""
        from accelerate.state import AcceleratorState

        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(True)


def _keep_trainable(model: torch.nn.Module) -> None:
    """On processors, bitsandbytes packs weights of 4 bits anew when a model is first evaluated, into a form through
    which no gradient flows: silently, all that is trained below such a layer would stand still."""
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
            weight = module.weight
            if getattr(weight.quant_state, "packing_format_for_cpu", False):
                from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse as unpacked

                weight.data, weight.quant_state = unpacked(weight.data, weight.quant_state)


def _none_of(labels: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    positions, targets = labels
    return positions[:0], targets[:0]


def size_of(state: Any) -> int:
    """The bytes of the tensors in an optimizer's state."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(size_of, state.values()))
    return sum(map(size_of, state)) if isinstance(state, list) else 0
