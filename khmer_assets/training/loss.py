"""The loss of a training step: over the label tokens alone, whatever the vocabulary's size.

The logits of a batch can take more memory than all else together. So the head is applied where there is a label, and to
no more tokens at a time than `LOGITS_AT_ONCE` allows; their logits are computed a second time for the gradients.
"""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from khmer_assets.training import held_out
from khmer_assets.training.models import IGNORED, Precision, autocast


class TokenLoss(torch.nn.Module):
    """A decoder that gives its loss: the sum, in nats, over label tokens. `model` may be wrapped by peft."""

    def __init__(self, model: Any, precision: Precision):
        super().__init__()
        self.model = model
        self.precision: Precision = precision
        with autocast(precision):
            self.backbone, self.head = _backbone_and_head(model)

    def forward(self, positions: torch.Tensor, targets: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """`inputs` are the model's, of shape (rows, width); `positions` and `targets` are `label_tokens`'."""
        with autocast(self.precision):
            if self.head is None:
                logits = self.model(**inputs, use_cache=False).logits
                return _nats(logits.flatten(0, 1)[positions], targets)
            hidden = self.backbone(**inputs, use_cache=False)[0].flatten(0, 1)[positions]
            size = held_out.positions_at_once(self.model.config.get_text_config().vocab_size)
            if len(targets) <= size:
                return self._of_hidden(hidden, targets)
            losses = [
                checkpoint(self._of_hidden, some, wanted, use_reentrant=False)
                for some, wanted in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
            ]
            return torch.stack(losses).sum()

    def _of_hidden(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _nats(self.head(hidden), targets)


def label_tokens(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens are followed by a label, counted through all rows, and those labels; for `labels` of shape
    (rows, width) that stand at the tokens themselves, as transformers has them."""
    followed = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    positions = (followed != IGNORED).nonzero().flatten()
    return positions, followed[positions]


def _nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def _backbone_and_head(model: Any) -> tuple[Any, Any]:
    """The model's two parts; nothing when the one after the other is not the whole (some scale or bound the logits)."""
    try:
        backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
        head = model.get_output_embeddings()
        training = model.training
        model.eval()
        with torch.no_grad():
            ids = torch.arange(3, device=model.device)[None] + model.config.get_text_config().vocab_size // 2
            whole = model(input_ids=ids, use_cache=False).logits
            parts = head(backbone(input_ids=ids, use_cache=False)[0])
        model.train(training)
    except (AttributeError, TypeError, KeyError):
        return None, None
    return (backbone, head) if torch.allclose(whole, parts, rtol=1e-3, atol=1e-4) else (None, None)
