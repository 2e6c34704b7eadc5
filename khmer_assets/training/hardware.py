"""How fast this machine can be at best, how much of that a training reaches, and the cores that it may use."""

import os
import resource
from typing import Any

import torch

from khmer_assets.foundation import environments
from khmer_assets.foundation.workers import cores

# Dense bfloat16 TFLOP/s by the makers' data sheets; the first that stands in the device's name counts.
PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "MI300X": 1307,
}


def peak_flops() -> float | None:
    """Floating-point operations a second in bfloat16 that this accelerator is sold for; None where it is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((1e12 * tflops for known, tflops in PEAK_TFLOPS.items() if known in name), None)


def take_spared_core() -> None:
    """Compute on all cores from now on if one was left to the builds of environments, and they have ended."""
    if environments.SPARED_CORE_VARIABLE in os.environ and not environments.builds_go_on():
        del os.environ[environments.SPARED_CORE_VARIABLE]
        torch.set_num_threads(cores())


def flops_a_token(model: Any, width: int) -> float:
    """Floating-point operations that training takes a token, in sequences of `width` tokens: two a weight forward and
    two for the gradient of what goes through it, two more where the weight is trained; and 12 for attention a layer,
    channel and token that is looked at (Chowdhery et al., 2022, appendix B).
    Looking a token up is no operation; what gradient_checkpointing computes twice is counted once.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    looked_up = set() if tied else {id(p) for p in model.get_input_embeddings().parameters()}
    through = [p for p in model.parameters() if id(p) not in looked_up]
    weights = sum(_size(p) for p in through)
    trained = sum(p.numel() for p in through if p.requires_grad)
    attention = 12 * config.num_hidden_layers * config.hidden_size * width
    return 4 * weights + 2 * trained + attention


def memory_mb() -> float:
    """The most memory that this process has had: the accelerator's, or the machine's where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sensors() -> dict[str, float]:
    """Temperature (°C), load (%) and power (W) of this process's accelerator now; nothing where it does not tell them,
    or where the library that asks its driver (NVIDIA's: nvidia-ml-py) is not installed."""
    if not torch.cuda.is_available():
        return {}
    try:
        return {
            "gpu_celsius": float(torch.cuda.temperature()),
            "gpu_load": float(torch.cuda.utilization()),
            "gpu_watts": torch.cuda.power_draw() / 1000,
        }
    except Exception:  # each library has errors of its own
        return {}


def _size(parameter: torch.nn.Parameter) -> int:
    """How many weights it stands for: bitsandbytes keeps two in a byte, and knows their shape."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
