"""Examples of chats -> the rows that a model is given: several chats in a row, none of which sees another.

Which tokens are learned does not belong here (`encoding.py`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from khmer_assets.finetuning.encoding import IGNORED, Example

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-3  # nats a token
ROUNDED_TOLERANCE = 2e-2  # the same, where weights of 16 or 4 bits round each step of the way
COMPARED_TOKENS = 256  # of each of two chats


def chats_of_epoch(chats: int, batch_size: int, seed: tuple[int, int]) -> np.ndarray:
    """Which chats make each step: an array of shape (steps, batch_size), another for every seed.

    A rest that fills no step waits for another epoch.
    """
    order = np.random.default_rng(seed).permutation(chats)
    return order[: chats // batch_size * batch_size].reshape(-1, batch_size)


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """A step's examples, `size` at a time; those of similar length together, for they fill their rows best."""
    ordered = sorted(examples, key=lambda example: len(example.ids), reverse=True)
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def rows_of(lengths: Sequence[int]) -> list[list[int]]:
    """Which examples stand in each row: as few rows as are easily found (first fit, the longest first), none longer
    than the longest example, for attention costs a row's square.

    >>> rows_of([10, 3, 4, 9, 2])
    [[0], [3], [2, 1, 4]]
    """
    width = max(lengths)
    rows: list[list[int]] = []
    free: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row, left in enumerate(free) if left >= lengths[place]), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free.append(width)
        rows[row].append(place)
        free[row] -= lengths[place]
    return rows


def packed(examples: Sequence[Example], pad: int) -> dict[str, "torch.Tensor"]:
    """The model's arguments for examples that share rows: input_ids, position_ids and labels of shape (rows, width).

    Positions start again with each example, and there is no attention mask: by this transformers keeps examples apart,
    where `use_cache` is False. The first token of an example is never a label, for the one before it is another's.
    """
    import torch

    rows = rows_of([len(example.ids) for example in examples])
    width = max(len(example.ids) for example in examples)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORED)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        at = 0
        for place in row:
            example = examples[place]
            end = at + len(example.ids)
            ids[number, at:end] = torch.tensor(example.ids)
            labels[number, at + 1 : end] = torch.tensor(example.labels[1:])
            positions[number, at:end] = torch.arange(len(example.ids))
            at = end
        positions[number, at:] = torch.arange(width - at)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


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


def can_pack(model: Any, examples: Sequence[Example]) -> tuple[bool, float]:
    """Whether the model keeps two real examples in one row apart, and by how much (nats a token) their mean losses
    differ from those in rows of their own.

    An architecture that takes no positions, or one whose layers look past their starting again, shows here.
    """
    import torch

    pair = [example.ids[:COMPARED_TOKENS] for example in examples[:2]]

    def logits(ids: list[int], **positions: Any) -> "torch.Tensor":
        row = torch.tensor([ids], device=model.device)
        return model(input_ids=row, **positions, use_cache=False).logits[0].float()

    with torch.inference_mode():
        positions = torch.tensor([[place for ids in pair for place in range(len(ids))]], device=model.device)
        try:
            together = logits([identity for ids in pair for identity in ids], position_ids=positions)
        except TypeError:
            return False, float("nan")
        difference, at = 0.0, 0
        for ids in pair:
            targets = torch.tensor(ids[1:], device=model.device)
            losses = [
                float(torch.nn.functional.cross_entropy(found[: len(targets)], targets))
                for found in (together[at:], logits(ids))
            ]
            difference, at = max(difference, abs(losses[0] - losses[1])), at + len(ids)
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    return difference <= (TOLERANCE if exact else ROUNDED_TOLERANCE), difference
