"""How much memory a training step takes, measured on a short row before the first step."""

from typing import TYPE_CHECKING, Any

from khmer_assets.training.models import Precision, autocast
from resources.payload import Refusal

if TYPE_CHECKING:
    import torch

SHORT, LONGER = 32, 96  # tokens of the rows that are measured
OPTIMIZER_BYTES = 12  # a trained weight: its gradient and AdamW's two moments, in float32
GB = 1e9


def needed_bytes(model: Any, tokens: int, precision: Precision) -> int:
    """What a step with `tokens` tokens in memory keeps for its backward pass, and what the optimizer keeps.

    It is the least that is needed: what the head and single operations take for a moment is not in it. A layer keeps
    as much for every token, so that two short rows tell the rest.
    """
    short, longer = (_kept_bytes(model, width, precision) for width in (SHORT, LONGER))
    a_token = (longer - short) / (LONGER - SHORT)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return round(a_token * tokens) + OPTIMIZER_BYTES * trained


def _kept_bytes(model: Any, width: int, precision: Precision) -> int:
    import torch

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: "torch.Tensor") -> "torch.Tensor":
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros((1, width), dtype=torch.long, device=model.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(precision):
        output = model(input_ids=ids, use_cache=False, logits_to_keep=1)  # kept alive, so that no storage is reused
    del output
    return sum(kept.values())


def free_bytes(device: "torch.device") -> int:
    """What is free on the device."""
    import psutil
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return int(psutil.virtual_memory().available)


def too_large(needed: str, in_memory: int, settings: Any) -> Refusal:
    """The refusal of a step with so many chats `in_memory`; `needed` says how it was found not to fit."""
    ways = []
    if in_memory > 1:
        ways.append(f"lower finetuning.micro_batch_size (chats in memory at a time, now {in_memory})")
    if not settings.gradient_checkpointing:
        ways.append("turn on finetuning.gradient_checkpointing")
    if settings.quantization == "none":
        ways.append("hold the base in 4 bits (finetuning.quantization: nf4)")
    ways.append("shorten the context (longer chats are then set aside)")
    return Refusal(f"a step does not fit the memory: {needed}; {', or '.join(ways)}")
