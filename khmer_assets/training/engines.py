"""What updates a model's weights: one process, several that share the work (DDP), or several that also share the
optimizer's state (DeepSpeed's ZeRO). The loop does not see which.

Processes are those that torchrun has started (`resources/compute.py`). Their checkpoints are alike: what any number
of them has written, any other number can load.
"""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from khmer_assets.training.loss import TokenLoss, label_tokens
from khmer_assets.training.models import device
from khmer_assets.training.optimizers import Optimizer, Stepper, adamw, adamw_groups
from khmer_assets.training.settings import TrainingSettings
from resources.payload import Refusal

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

    def agreed(self, value: float) -> float:
        """The first process's value, for all of them."""
        return value

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
        return _bytes(self.optimizer_state())

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

    def agreed(self, value: float) -> float:
        """The first process's value, for all of them."""
        return float(self.gathered(value)[0])

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


class Sharded(Together):
    """Several processes that keep a part of AdamW's state and of the gradients each (ZeRO-2).

    DeepSpeed is imported here alone: it takes seconds, and writes warnings.
    """

    engine: Any

    def prepare(self) -> None:
        """Give loss and optimizer to DeepSpeed."""
        if self.optimizer is not None:
            raise Refusal("this optimizer cannot be sharded; set sharding: none")
        if not torch.cuda.is_available():
            os.environ["DS_ACCELERATOR"] = "cpu"
        try:
            import deepspeed
        except ImportError as error:
            raise Refusal(f"sharding needs DeepSpeed ({error}); install deepspeed, or set sharding: none") from None
        # exchange through shared memory, which a C++ compiler would be needed for; gloo does it as well
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        config = {
            "train_micro_batch_size_per_gpu": 1,  # it is asked for, and told of nothing: the loop counts tokens
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.settings.max_gradient_norm,
            "zero_optimization": {"stage": 2, "overlap_comm": torch.cuda.is_available()},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self.adamw = adamw(adamw_groups(self.model, self.settings.weight_decay))
        self.parameters = [p for group in self.adamw.param_groups for p in group["params"]]
        self.engine, *_ = deepspeed.initialize(model=self.loss, optimizer=self.adamw, config=config)
        self.loss = self.engine
        for shard in self._shards():
            step = torch.zeros((), device=shard.device if self.adamw.defaults["fused"] else "cpu")
            self.engine.optimizer.optimizer.state[shard] = {
                "step": step,
                "exp_avg": torch.zeros_like(shard),
                "exp_avg_sq": torch.zeros_like(shard),
            }
        # DeepSpeed would do so after the update of the first group of parameters, and miss the states of the others
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _shards(self) -> list[torch.Tensor]:
        return [shard for group in self.engine.optimizer.optimizer.param_groups for shard in group["params"]]

    def without_exchange(self) -> Any:
        """DeepSpeed is told with the backward pass."""
        return nullcontext()

    def backward(self, loss: torch.Tensor, last: bool) -> None:
        """Add to the gradients; `last` in a step."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)

    def apply(self, learning_rate: float) -> torch.Tensor:
        """Clip and update; gives the gradient's norm before."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm(), device=self.device)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state as one process would have it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state = {
            index: {
                "step": self._updates(),
                **{key: self._kept(safe_get_full_optimizer_state(p, key)) for key in ("exp_avg", "exp_avg_sq")},
            }
            for index, p in enumerate(self.parameters)
        }
        groups = adamw(adamw_groups(self.model, self.settings.weight_decay)).state_dict()["param_groups"]
        return {"adamw": {"state": state, "param_groups": groups}, "muon": None}

    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any] | None) -> None:
        """Go on from saved weights, and from an optimizer's state where one is given."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, parameter in self.trainable().items():
            value = weights[name].to(self.device)
            parameter.data.copy_(value)
            safe_set_full_fp32_param(parameter, value)
        if optimizer is not None:
            saved = optimizer["adamw"]["state"]
            for shard in self._shards():
                self.engine.optimizer.optimizer.state[shard]["step"].copy_(saved[0]["step"])
            for index, parameter in enumerate(self.parameters):
                for key in ("exp_avg", "exp_avg_sq"):
                    safe_set_full_optimizer_state(parameter, saved[index][key].to(self.device), key)

    def optimizer_bytes(self) -> int:
        """What this process keeps of the optimizer's state."""
        return _bytes(dict(self.engine.optimizer.optimizer.state))

    def close(self) -> None:
        """End what the processes have in common; each goes on alone, with the whole model."""
        self.engine.destroy()
        super().close()

    def _updates(self) -> torch.Tensor:
        return self.engine.optimizer.optimizer.state[self._shards()[0]]["step"].cpu().clone()

    def _kept(self, value: torch.Tensor) -> torch.Tensor:
        """On the first process alone, which saves it."""
        return value.cpu() if self.rank == 0 else torch.empty(0)


def engine(model: Any, settings: TrainingSettings, optimizer: Stepper | None = None) -> Engine:
    """The engine for the settings and the processes that are there."""
    kind: Callable[..., Engine] = Engine
    if processes() > 1:
        kind = Together if settings.sharding == "none" else Sharded
    return kind(model, settings, optimizer)


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


def _bytes(state: Any) -> int:
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_bytes, state.values()))
    return sum(map(_bytes, state)) if isinstance(state, list) else 0
