"""Examples of chats -> the row that a model is given: several chats in a row, none of which sees another.

Which tokens are learned does not belong here (`encoding.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from khmer_assets.finetuning.encoding import Example
from khmer_assets.training.models import IGNORED, SHORT, Precision, autocast, compute_dtype

if TYPE_CHECKING:
    import torch

OWN_ATTENTION = "chat_by_chat"
TOLERANCE = 1e-3  # nats a token
ROUNDED_TOLERANCE = 2e-2  # the same, where bfloat16 rounds each step of the way
COMPARED_TOKENS = 256  # of each of two chats


def chats_of_epoch(chats: int, batch_size: int, seed: tuple[int, int]) -> np.ndarray:
    """Which chats make each step: an array of shape (steps, batch_size), another for every seed.

    A rest that fills no step waits for another epoch.
    """
    order = np.random.default_rng(seed).permutation(chats)
    return order[: chats // batch_size * batch_size].reshape(-1, batch_size)


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """A step's examples, `size` at a time; those of similar length together, so that little of it is padding."""
    ordered = sorted(examples, key=lambda example: len(example.ids), reverse=True)
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def packed(examples: Sequence[Example]) -> dict[str, "torch.Tensor"]:
    """The model's arguments for examples that share one row, for a model that `keeps_apart`: input_ids, position_ids
    and labels of shape (1, tokens).

    Positions start again with each example. Its first token is never a label, for the one before it is another's.
    """
    import torch

    return {
        "input_ids": torch.tensor([[identity for example in examples for identity in example.ids]]),
        "position_ids": torch.tensor([[place for example in examples for place in range(len(example.ids))]]),
        "labels": torch.tensor([[label for example in examples for label in (IGNORED, *example.labels[1:])]]),
    }


def padded(examples: Sequence[Example], pad: int) -> dict[str, "torch.Tensor"]:
    """The model's arguments for a row an example, padded on the right: for architectures that cannot pack."""
    import torch

    width = max(len(example.ids) for example in examples)

    def filled(rows: Sequence[Sequence[int]], with_: int) -> "torch.Tensor":
        return torch.tensor([[*row, *[with_] * (width - len(row))] for row in rows])

    return {
        "input_ids": filled([example.ids for example in examples], pad),
        "attention_mask": filled([[1] * len(example.ids) for example in examples], 0),
        "labels": filled([[IGNORED, *example.labels[1:]] for example in examples], IGNORED),
    }


@contextmanager
def keeps_apart(model: Any, examples: Sequence[Example], precision: Precision) -> Iterator[float | None]:
    """Within it, the examples of a `packed` row do not see each other: attention is computed chat by chat, which costs
    less than a mask over the whole row. The weights are left as they are.

    Gives by how much (nats a token) the mean loss of two of the examples differs from the one in rows of their own.
    Where that is more than rounding, or the architecture's attention has more to it (a sliding window, bounds), the
    model is left as it was, and None is given.
    """
    from transformers import AttentionInterface

    before = model.config._attn_implementation
    AttentionInterface.register(OWN_ATTENTION, _Attention())
    try:
        difference = _difference(model, before, examples, precision)
        yield difference
    finally:
        model.set_attn_implementation(before)


class _Attention:
    """Causal attention within each example of a row, for transformers' attention interface."""

    def __init__(self) -> None:
        self.positions: torch.Tensor | None = None
        self.lengths: list[int] = []

    def __call__(
        self, module: Any, query: Any, key: Any, value: Any, attention_mask: None, **options: Any
    ) -> tuple[Any, None]:
        """Tensors of shape (1, heads, tokens, width)."""
        import torch
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        for more in ("sliding_window", "softcap", "s_aux"):
            if options.pop(more, None) is not None:
                raise _NotSupported(more)
        positions = options.pop("position_ids", None)
        if positions is None:
            raise _NotSupported("attention without positions")
        if positions is not self.positions:  # once a row, not once a layer: on an accelerator it waits for all before
            starts = (positions.flatten() == 0).nonzero().flatten().tolist()
            self.positions, ends = positions, [*starts[1:], positions.numel()]
            self.lengths = [end - start for start, end in zip(starts, ends, strict=True)]
        if key.shape[2] != sum(self.lengths) or len(self.lengths) < 2:
            return sdpa_attention_forward(module, query, key, value, None, **options)
        # torch's attention on a CPU takes twice as long for short chats in bfloat16, to which autocast leads it
        short = query.device.type == "cpu" and max(self.lengths) < SHORT
        whole = [tensor.float() if short else tensor for tensor in (query, key, value)]
        parts = zip(*(tensor.split(self.lengths, dim=2) for tensor in whole), strict=True)
        with torch.autocast("cpu", enabled=False) if short else nullcontext():
            found = [sdpa_attention_forward(module, *part, None, **options)[0] for part in parts]
        return torch.cat(found, dim=1).to(query.dtype), None


class _NotSupported(Exception):
    """What this model's attention has that ours has not."""


def _difference(model: Any, before: str, examples: Sequence[Example], precision: Precision) -> float | None:
    import torch

    pair = [Example(*(part[:COMPARED_TOKENS] for part in example)) for example in examples[:2]]
    pair = [Example(example.ids, example.ids) for example in pair]

    def losses(inputs: dict[str, "torch.Tensor"]) -> "torch.Tensor":
        inputs = {name: part.to(model.device) for name, part in inputs.items()}
        targets = inputs.pop("labels")[0, 1:]
        logits = model(**inputs, use_cache=False).logits[0, :-1].float()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")

    with torch.inference_mode(), autocast(precision):
        alone = [losses(packed([example])) for example in pair]
        model.set_attn_implementation(OWN_ATTENTION)
        try:
            together = losses(packed(pair))
        except (_NotSupported, TypeError):
            model.set_attn_implementation(before)
            return None
        ends = [len(alone[0]), len(together) - len(alone[-1])]
        parts = [together[: ends[0]], together[ends[1] :]]
        difference = max(abs(float(a.mean() - b.mean())) for a, b in zip(alone, parts, strict=False))
    exact = compute_dtype(precision) == torch.float32
    if difference > (TOLERANCE if exact else ROUNDED_TOLERANCE):
        model.set_attn_implementation(before)
        return None
    return difference
