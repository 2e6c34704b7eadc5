"""Quantizes the Linear layers to 4-bit weights and 16-bit activations with AWQ, in the format that vLLM loads."""

import json
from pathlib import Path
from typing import Any

from khmer_assets.compression.calibration import (
    MERGED_MODEL,
    CalibrationSpec,
    compress,
    compressible_layers,
    load_for_compression,
    save,
)
from khmer_assets.foundation.settings import PositiveInt, Settings
from resources.payload import PayloadRun, Refusal

FIGURES = "awq.json"


class AwqSettings(Settings):
    """`awq_group_size` weights of a row share a scale."""

    awq_group_size: PositiveInt = 128


class Spec(CalibrationSpec):
    """`group_size` weights of a row share a scale."""

    group_size: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the model with compressed-tensors W4A16 weights, its tokenizer and `awq.json` with its figures.

    Raises `Refusal` when the model has no Linear layers or their rows do not divide into groups.
    """
    from compressed_tensors.quantization import preset_name_to_scheme  # type: ignore[import-untyped]
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    model = load_for_compression(spec.model)
    layers = compressible_layers(model)
    for name, layer in layers.items():
        if layer.in_features % spec.group_size:
            raise Refusal(
                f"{name} has rows of {layer.in_features} weights, which compression.awq_group_size "
                f"({spec.group_size}) does not divide; choose a divisor"
            )
    before = 2 * sum(layer.weight.numel() for layer in layers.values())
    scheme = preset_name_to_scheme("W4A16_ASYM", ["Linear"])  # a zero point a group, as AWQ's authors have (Lin 2023)
    scheme.weights.group_size = spec.group_size
    scheme.weights.observer = "mse"  # a scale that cuts off outliers where that errs less
    quantization = QuantizationModifier(config_groups={"linear": scheme}, ignore=["re:.*lm_head"])
    compress(spec, [AWQModifier(), quantization], model, run)
    save(spec, model, run.output)
    after = quantized_bytes(run.output, set(layers))
    figures = {
        "layers": len(layers),
        "linear_bytes_bfloat16": before,
        "linear_bytes": after,
        "linear_bytes_ratio": after / before,
        MERGED_MODEL: spec.model.name,
    }
    (run.output / FIGURES).write_text(json.dumps(figures, indent=1))
    return figures


def quantized_bytes(folder: Path, layers: set[str]) -> int:
    """Bytes that the weights of `layers` take in a saved model, with their scales, zero points and shapes."""
    from safetensors import safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # not a dict: it cannot be iterated
                layer, _, part = name.rpartition(".")
                if layer in layers and part != "bias":
                    total += tensors.get_tensor(name).nbytes
    return total
