"""What a training takes, worked out from the shapes of its model before it has begun."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from khmer_assets.training.hardware import flops_a_token
from khmer_assets.training.held_out import LOGITS_AT_ONCE
from khmer_assets.training.models import compute_dtype
from khmer_assets.training.settings import TrainingSettings

SHARE_OF_PEAK = 0.4  # that a training reaches in the end; benchmarks/gpu.py measures it
ADAM_BYTES = 8  # a trained weight: the two means
FLOAT32, BFLOAT16, NF4 = 4.0, 2.0, 0.53  # bytes a weight; in NF4 4 bits and the twice quantized scales
# Bytes a token, layer and channel that the backward pass needs in 16 bits; of attention's scores nothing, for they are
# computed again (Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models").
ACTIVATION_BYTES = 34
KEPT_BYTES = 2  # the same with gradient_checkpointing: a layer's input
LOGIT_COPIES = 3  # of the logits, in float32: their log-softmax and the gradient beside them


@dataclass(frozen=True)
class Estimate:
    """`parameters` and `trained` weights; `memory` and `disk` in bytes, `disk` of the model and one checkpoint."""

    parameters: int
    trained: int
    steps: int
    tokens: int
    memory: float
    disk: float
    flops: float

    def hours(self, flops_a_second: float) -> float:
        """On hardware with this peak."""
        return self.flops / (flops_a_second * SHARE_OF_PEAK) / 3600


def estimate(model: Any, settings: TrainingSettings, context_length: int, steps: int, frozen_bytes: float) -> Estimate:
    """What `steps` steps take on one device, of a model (on `meta`: its shapes suffice) whose weights that are not
    trained take `frozen_bytes` each. Every sequence is taken to fill the `context_length`."""
    config = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    in_memory = (settings.micro_batch_size or settings.batch_size) * context_length
    width = config.hidden_size
    if settings.gradient_checkpointing:
        activations = in_memory * width * (KEPT_BYTES * config.num_hidden_layers + ACTIVATION_BYTES)
    else:
        activations = in_memory * width * ACTIVATION_BYTES * config.num_hidden_layers
    logits = FLOAT32 * LOGIT_COPIES * min(in_memory * config.vocab_size, LOGITS_AT_ONCE)
    weights = frozen_bytes * (parameters - trained) + FLOAT32 * trained
    tokens = steps * settings.batch_size * context_length
    return Estimate(
        parameters=parameters,
        trained=trained,
        steps=steps,
        tokens=tokens,
        memory=weights + (FLOAT32 + ADAM_BYTES) * trained + activations + logits,
        disk=2 * FLOAT32 * trained + ADAM_BYTES * trained,
        flops=tokens * flops_a_token(model, context_length),
    )


def measured_flops(seconds: float = 0.3, size: int = 2048) -> float:
    """Floating-point operations a second of this machine's processor, in products of matrices as a training has them.

    By processor time, which what else runs beside does not prolong.
    """
    dtype = compute_dtype("auto")
    a, b = torch.rand(size, size).to(dtype), torch.rand(size, size).to(dtype)
    a @ b  # the first is slow
    products, started = 0, time.process_time()
    while (used := (time.process_time() - started) / torch.get_num_threads()) < seconds:
        a @ b
        products += 1
    return 2 * size**3 * products / used
