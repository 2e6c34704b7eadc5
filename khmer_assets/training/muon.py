"""The Muon optimizer (Jordan et al., 2024), which orthogonalizes the updates of matrices.

PyTorch has one too, but it always computes in bfloat16, which many processors emulate slowly, and one matrix at a time.
This one computes in the precision that it is given and all matrices of a shape at once.
"""

from collections.abc import Iterable

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, chosen by its authors for fast convergence
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For hidden matrices only; embeddings, output heads and vectors want AdamW. Updates are computed in `dtype`."""

    def __init__(
        self,
        parameters: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float,
        dtype: torch.dtype,
        momentum: float = 0.95,
    ):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever needed here
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(momentum, group["momentum"])
                wide = direction if direction.shape[0] <= direction.shape[1] else direction.T
                by_shape.setdefault(tuple(wide.shape), []).append((parameter, wide))
            for members in by_shape.values():
                updates = orthogonalized(torch.stack([wide for _, wide in members]), self.dtype)
                for (parameter, _), update in zip(members, updates, strict=True):
                    rows, columns = parameter.shape
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(
                        update if rows <= columns else update.T, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5
                    )


def orthogonalized(matrices: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices of shape (number, rows, columns), rows <= columns, with all singular values brought near to 1; computed,
    and given, in `dtype`. bfloat16 is exact enough, as its authors say: the iteration is made to be inexact."""
    a, b, c = COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
