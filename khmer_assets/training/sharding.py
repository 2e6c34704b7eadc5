"""Engines whose processes share the optimizer's state, or all of the model, by the stages of ZeRO (Rajbhandari et al.,
2020): the second by DeepSpeed, the third by PyTorch's FSDP2, which needs less around it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from khmer_assets.training.engines import Engine, Together, processes, size_of
from khmer_assets.training.optimizers import Stepper, adamw, adamw_groups
from khmer_assets.training.settings import TrainingSettings
from resources.payload import Refusal


def engine(model: Any, settings: TrainingSettings, optimizer: Stepper | None = None) -> Engine:
    """The engine for the settings and the processes that are there."""
    kinds: dict[str, Callable[..., Engine]] = {"none": Together, "zero2": ZeRO2, "zero3": ZeRO3}
    kind = kinds[settings.sharding] if processes() > 1 else Engine
    return kind(model, settings, optimizer)


class ZeRO2(Together):
    """Several processes that keep a part of AdamW's state and of the gradients each (ZeRO-2).

    DeepSpeed is imported here alone: it takes seconds, and writes warnings.
    """

    engine: Any

    def prepare(self) -> None:
        """Give loss and optimizer to DeepSpeed."""
        _refuse(self.optimizer)
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
        return size_of(dict(self.engine.optimizer.optimizer.state))

    def close(self) -> None:
        """End what the processes have in common; each goes on alone, with the whole model."""
        self.engine.destroy()
        super().close()

    def _updates(self) -> torch.Tensor:
        return self.engine.optimizer.optimizer.state[self._shards()[0]]["step"].cpu().clone()

    def _kept(self, value: torch.Tensor) -> torch.Tensor:
        """On the first process alone, which saves it."""
        return value.cpu() if self.rank == 0 else torch.empty(0)


class ZeRO3(Together):
    """Several processes that keep a part of the weights, of the gradients and of AdamW's state each (ZeRO-3, FSDP2). A
    layer's weights are gathered when it is computed."""

    def prepare(self) -> None:
        """Take the model apart; the optimizer is then one of the parts."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        _refuse(self.optimizer)
        if not all(p.is_floating_point() for p in self.model.parameters()):
            raise Refusal("a base in 4 bits cannot be sharded; set sharding: zero2, or quantization: none")
        self.mesh = init_device_mesh(self.accelerator.device.type, (self.count,))
        layers = self.model.config.get_text_config().num_hidden_layers
        lists = (m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers)
        self.parts: list[Any] = [fully_shard(part, mesh=self.mesh) for part in [*next(lists, ()), self.loss]]
        Engine.prepare(self)

    @contextmanager
    def without_exchange(self) -> Iterator[None]:
        """The context of a backward pass whose gradients stay in this process."""
        self.parts[-1].set_requires_gradient_sync(False)
        yield
        self.parts[-1].set_requires_gradient_sync(True)

    def apply(self, learning_rate: float) -> torch.Tensor:
        """Clip and update; gives the gradient's norm before."""
        return _full(super().apply(learning_rate))

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it, each process has all weights, and computes with them without the others."""
        for part in self.parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        yield
        for part in self.parts:
            part.set_reshard_after_forward(part is not self.parts[-1], recurse=False)
            part.reshard()

    def weights(self) -> dict[str, torch.Tensor]:
        """What is trained, to be saved. All processes ask for it at once."""
        return {name: self._kept(p.data) for name, p in self.trainable().items()}

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state as one process would have it."""
        return self._each(super().optimizer_state(), self._kept)

    def load(self, weights: dict[str, torch.Tensor], optimizer: dict[str, Any] | None) -> None:
        """Go on from saved weights, and from an optimizer's state where one is given."""
        super().load({name: self._part(value) for name, value in weights.items()}, None)
        if optimizer is not None:
            assert self.optimizer is not None
            self.optimizer.load_state_dict(self._each(optimizer, self._part))

    def optimizer_bytes(self) -> int:
        """What this process keeps of the optimizer's state."""
        return size_of(self._each(super().optimizer_state(), lambda value: getattr(value, "_local_tensor", value)))

    def close(self) -> None:
        """End what the processes have in common; each goes on alone, with the whole model."""
        former: dict[torch.Tensor, torch.nn.Parameter] = {}  # tied parameters stay tied
        for module in self.loss.modules():
            for name, p in module._parameters.items():
                if p is not None:
                    module._parameters[name] = former.setdefault(p, torch.nn.Parameter(_full(p.data), p.requires_grad))
        for part in self.parts:
            _as_before(part)
        super().close()

    def _each(self, state: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        if isinstance(state, torch.Tensor):
            return change(state)
        if isinstance(state, dict):
            return {key: self._each(value, change) for key, value in state.items()}
        return [self._each(value, change) for value in state] if isinstance(state, list) else state

    def _kept(self, value: torch.Tensor) -> torch.Tensor:
        """The whole of it, on the first process alone, which saves it."""
        whole = _full(value)
        return whole.cpu() if self.rank == 0 else torch.empty(0)

    def _part(self, value: torch.Tensor) -> torch.Tensor:
        """This process's part of it."""
        from torch.distributed.tensor import Shard, distribute_tensor

        if value.dim() == 0:  # a count of steps, which is everybody's
            return value
        return distribute_tensor(value.to(self.device), self.mesh, [Shard(0)], src_data_rank=None)


def _full(value: torch.Tensor) -> torch.Tensor:
    full: torch.Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full


def _as_before(part: Any) -> None:
    """Take from a module what FSDP2 hung on it, which has no public way back: else the module takes itself apart again
    when its weights are asked for."""
    state = part._get_fsdp_state()
    group = state._fsdp_param_group
    handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
    if group is not None:
        handles += group._module_to_pre_save_state_dict_hook_handle.values()
        handles += group._module_to_pre_load_state_dict_hook_handle.values()
    for handle in handles:
        handle.remove()
    part.__class__ = type(part).__mro__[type(part)._orig_cls_mro_index]


def _refuse(optimizer: Stepper | None) -> None:
    if optimizer is not None:
        raise Refusal("this optimizer cannot be sharded; set sharding: none")
