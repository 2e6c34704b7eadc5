"""Prunes the Linear layers to 2:4 sparsity with SparseGPT: in each four weights of a row, two are zero.

The weights stay dense: vLLM has no kernels for them, so the gain is a smaller bundle, not speed.
"""

import json
from typing import Any

from khmer_assets.compression.calibration import (
    MERGED_MODEL,
    CalibrationSpec,
    compress,
    compressible_layers,
    load_for_compression,
)
from khmer_assets.foundation.settings import Ratio, Settings
from resources.payload import PayloadRun, Refusal

FIGURES = "pruning.json"


class PruningSettings(Settings):
    """`prune_ratio` is the share of zeros, which 2:4 fixes at one half."""

    prune_ratio: Ratio = 0.5


class Spec(CalibrationSpec):
    """`ratio` is the share of zeros, which 2:4 fixes at one half."""

    ratio: float


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the pruned model in bfloat16, its tokenizer and `pruning.json`: the `structure` of what was saved."""
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    if spec.ratio != 0.5:
        raise Refusal(f"compression.prune_ratio is {spec.ratio:g}, but 2:4 sparsity removes one half; set 0.5")
    model = load_for_compression(spec.model)
    for name, layer in compressible_layers(model).items():
        if layer.in_features % 4:
            raise Refusal(f"{name} has rows of {layer.in_features} weights; 2:4 sparsity needs a multiple of 4")
    modifier = SparseGPTModifier(sparsity=spec.ratio, mask_structure="2:4", targets=["Linear"], ignore=["re:.*lm_head"])
    compress(spec, [modifier], model, run)
    config = json.loads((run.output / "config.json").read_text())
    quantization = config.get("quantization_config", {})
    figures: dict[str, Any] = structure(load_for_compression(run.output))
    figures["sparsity_config"] = bool(config.get("sparsity_config") or quantization.get("sparsity_config"))
    figures[MERGED_MODEL] = spec.model.name
    (run.output / FIGURES).write_text(json.dumps(figures, indent=1))
    return figures


def structure(model: Any) -> dict[str, Any]:
    """How sparse the Linear layers of a loaded model are.

    `zeros_min` and `zeros_max` are the smallest and largest share of zeros in a layer; `groups_broken` counts the
    groups of four weights with fewer than two zeros.
    """
    shares, broken = [], 0
    layers = compressible_layers(model)
    for layer in layers.values():
        zeros = layer.weight == 0
        shares.append(float(zeros.float().mean()))
        broken += int((zeros.reshape(-1, 4).sum(1) < 2).sum())
    return {"layers": len(layers), "zeros_min": min(shares), "zeros_max": max(shares), "groups_broken": broken}
