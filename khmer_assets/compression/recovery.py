"""Training after pruning: the model learns to predict again what the whole one predicts; what was removed stays zero.

Each Linear weight gets a low-rank change (Hu et al. 2021) below the mask of its zeros, so that the change can be added
to the weight for good. The whole model's distribution is the target at each token (Hinton et al. 2015), which holds a
finetuned model where it is, on texts as well as on chats.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from khmer_assets.training.models import autocast, device
from resources.payload import PayloadRun

if TYPE_CHECKING:
    import torch

RANK = 64
ROWS_A_STEP = 8
LEARNING_RATE = 2e-3


def recover(
    model: Any,
    whole: Any,
    layers: dict[str, Any],
    rows: "Sequence[dict[str, torch.Tensor]]",
    steps: int,
    seed: int,
    run: PayloadRun,
) -> None:
    """Train the `layers` of the pruned `model` in place, in float32, for `steps` steps of `ROWS_A_STEP` of the
    `rows` (a model's arguments), which come again where they are too few."""
    import torch
    from torch.nn.functional import kl_div, log_softmax
    from torch.nn.utils import parametrize

    generator = torch.Generator().manual_seed(seed)
    dtype = model.dtype
    model.float().to(device()).requires_grad_(False).train()
    whole.to(device()).eval()
    for layer in layers.values():
        parametrize.register_parametrization(layer, "weight", _low_rank(layer.weight, generator))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    loss = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / steps)
        chosen = [rows[(step * ROWS_A_STEP + number) % len(rows)] for number in range(ROWS_A_STEP)]
        tokens = sum(row["input_ids"].shape[1] for row in chosen)
        loss = 0.0
        for row in chosen:
            read = {name: part.to(model.device) for name, part in row.items()}
            with torch.no_grad(), autocast("auto"):
                wanted = log_softmax(whole(**read, use_cache=False).logits[0].float(), -1)
            with autocast("auto"):
                said = model(**read, use_cache=False).logits[0]
            own = kl_div(log_softmax(said.float(), -1), wanted, log_target=True, reduction="sum") / tokens
            own.backward()  # type: ignore[no-untyped-call]
            loss += float(own.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == steps - 1:
            run.log(f"recovery step {step + 1}/{steps}  {loss:.4f} nats a token from the whole model")
    for layer in layers.values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    model.to("cpu", dtype).eval()


def _low_rank(weight: "torch.Tensor", generator: "torch.Generator") -> "torch.nn.Module":
    """The parametrization of a pruned weight, of shape (outputs, inputs): (W + BA) with W's zeros."""
    import torch

    class LowRank(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            outputs, inputs = weight.shape
            rank = min(RANK, *weight.shape)
            # on the processor, so that the draw is the same on every device
            drawn = torch.randn(rank, inputs, generator=generator) / inputs**0.5
            self.a = torch.nn.Parameter(drawn.to(weight.device))
            self.b = torch.nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
            self.kept: torch.Tensor
            self.register_buffer("kept", weight.detach() != 0)

        def forward(self, original: "torch.Tensor") -> "torch.Tensor":
            return (original + self.b @ self.a) * self.kept

    return LowRank()
