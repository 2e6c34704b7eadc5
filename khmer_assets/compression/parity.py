"""How near the logits of an export are to those of the model that it was made from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from khmer_assets.training.models import load_model

if TYPE_CHECKING:
    import numpy as np

TEXTS_COMPARED = 16


def logits_alike(
    model: Path,
    tokenizer: Any,
    texts: Sequence[str],
    length: int,
    logits_of: Callable[[list[int]], "np.ndarray[Any, Any]"],
) -> dict[str, float]:
    """`top1_agreement` is the share of positions at which transformers (float32) and the export name the same next
    token, `logits_error` the root mean square of the logits' difference over that of the logits.

    `logits_of` gives the export's logits after each id, of shape (ids, vocabulary). Of the texts the first few are
    read, each to `length` tokens.
    """
    import numpy as np
    import torch

    loaded = load_model(model).eval()
    agreeing = positions = 0
    error = power = 0.0
    for text in texts[:TEXTS_COMPARED]:
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        with torch.inference_mode():
            expected = loaded(input_ids=torch.tensor([ids])).logits[0].numpy()
        actual = logits_of(ids)
        agreeing += int((actual.argmax(-1) == expected.argmax(-1)).sum())
        positions += len(ids)
        error += float(np.square(actual - expected).sum())
        power += float(np.square(expected).sum())
    return {
        "positions": positions,
        "top1_agreement": agreeing / positions,
        "logits_error": (error / power) ** 0.5,
    }
