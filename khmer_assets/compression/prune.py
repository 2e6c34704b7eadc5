"""Prunes the Linear layers to 2:4 sparsity with SparseGPT: in each four weights of a row, two are zero. First to one
zero in four, then to two, with training after each, in which the model recovers.

The weights stay dense: vLLM has no kernels for them, so the gain is a smaller bundle, not speed.
"""

import json
from typing import Annotated, Any

from pydantic import Field

from khmer_assets.compression.calibration import (
    MERGED_MODEL,
    CalibrationSpec,
    calibration_rows,
    compress,
    compressible_layers,
    load_for_compression,
    save,
)
from khmer_assets.compression.recovery import ROWS_A_STEP, recover
from khmer_assets.foundation.files import scratch_folder
from khmer_assets.foundation.settings import Settings
from resources.payload import PayloadRun, Refusal

FIGURES = "pruning.json"
PATTERNS = ("1:4", "2:4")  # zeros in each four weights; in two steps, as less is lost where training goes between


class PruningSettings(Settings):
    """`recovery_steps`: of training after each of the two `PATTERNS`; 0 for none."""

    recovery_steps: Annotated[int, Field(ge=0)] = 100


class Spec(CalibrationSpec):
    """`recovery_steps` of training after each of the `PATTERNS`."""

    recovery_steps: int = Field(ge=0)


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the pruned model in bfloat16, its tokenizer and `pruning.json`: the `structure` of what was saved.

    What a pattern and the training after it have made is kept in `run.state`, where the next run goes on.
    """
    from transformers import AutoTokenizer

    model = load_for_compression(spec.model)
    for name, layer in compressible_layers(model).items():
        if layer.in_features % 4:
            raise Refusal(f"{name} has rows of {layer.in_features} weights; 2:4 sparsity needs a multiple of 4")
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    # texts as many as the rows that the training asks for, or as were asked for
    read = spec.model_copy(update={"samples": max(spec.samples, spec.recovery_steps * ROWS_A_STEP)})
    rows = calibration_rows(read, tokenizer) if spec.recovery_steps else []
    for pattern in PATTERNS if rows else PATTERNS[-1:]:
        done = run.state / pattern.replace(":", "-of-")
        if not done.exists():
            _prune(spec, model, pattern, run)
            if rows:
                whole = load_for_compression(spec.model)
                recover(model, whole, compressible_layers(model), rows, spec.recovery_steps, spec.seed, run)
            with scratch_folder(run.state) as aside:
                model.save_pretrained(aside)
                aside.rename(done)
        model = load_for_compression(done)  # the way through bfloat16 rounds what a model does not save, too
    save(spec, model, run.output)
    config = json.loads((run.output / "config.json").read_text())
    quantization = config.get("quantization_config", {})
    figures: dict[str, Any] = structure(load_for_compression(run.output))
    figures["sparsity_config"] = bool(config.get("sparsity_config") or quantization.get("sparsity_config"))
    figures[MERGED_MODEL] = spec.model.name
    (run.output / FIGURES).write_text(json.dumps(figures, indent=1))
    return figures


def _prune(spec: Spec, model: Any, pattern: str, run: PayloadRun) -> None:
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    zeros, of = map(int, pattern.split(":"))
    run.log(f"pruning to {pattern}")
    modifier = SparseGPTModifier(
        sparsity=zeros / of, mask_structure=pattern, targets=["Linear"], ignore=["re:.*lm_head"]
    )
    compress(spec, [modifier], model, run)


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
