"""The optimizers of the trainings: which parameters each updates, and what both must keep to go on."""

from typing import Any, Protocol

import torch

from khmer_assets.training.models import compute_dtype
from khmer_assets.training.muon import Muon
from khmer_assets.training.settings import TrainingSettings

MATRIX_RATE = 2.0
BETAS = (0.9, 0.95)


class Stepper(Protocol):
    """What a training needs of an optimizer."""

    def step(self, learning_rate: float) -> None:
        """Update with the gradients at hand, then forget them."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""


class Optimizer:
    """Muon for the hidden matrices, AdamW for embeddings, heads and vectors.

    AdamW alone for a LoRA adapter, whose matrices have no full rank, and where the state is sharded, for Muon needs
    whole matrices. Weights decay in matrices alone. Learning rates are given a step; Muon's is `MATRIX_RATE` times
    AdamW's, for its updates have another scale.
    """

    def __init__(self, model: torch.nn.Module, settings: TrainingSettings):
        matrices, others = matrices_and_others(model)
        decay = settings.weight_decay
        alone = settings.sharding != "none" or is_adapter(model)
        dtype = compute_dtype(settings.precision)
        self.muon = None if alone or not matrices else Muon(matrices, lr=0.0, weight_decay=decay, dtype=dtype)
        self.adamw = adamw(others if self.muon else adamw_groups(model, decay)) if others or not self.muon else None

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
        return {
            "adamw": self.adamw.state_dict() if self.adamw else None,
            "muon": self.muon.state_dict() if self.muon else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for optimizer, saved in ((self.adamw, state["adamw"]), (self.muon, state["muon"])):
            if optimizer is not None:
                optimizer.load_state_dict(saved)


def is_adapter(model: torch.nn.Module) -> bool:
    """Whether it is a LoRA adapter that is trained."""
    return any("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def matrices_and_others(model: torch.nn.Module) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """The trainable matrices but embeddings and head, and what else is trainable."""
    head_of: Any = getattr(model, "get_output_embeddings", lambda: None)
    outside = [*(m for m in model.modules() if isinstance(m, torch.nn.Embedding)), *filter(None, [head_of()])]
    embeddings = {id(parameter) for m in outside for parameter in m.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.dim() == 2 and id(p) not in embeddings]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in trainable if id(p) not in chosen]


def adamw_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameter groups where AdamW is alone: matrices, which decay, and what does not."""
    matrices, others = matrices_and_others(model)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def adamw(parameters: list[Any]) -> torch.optim.AdamW:
    """AdamW over parameters or groups of them, in one kernel: on two cores it takes a quarter of the time."""
    return torch.optim.AdamW(parameters, lr=0.0, betas=BETAS, weight_decay=0.0, fused=True)
