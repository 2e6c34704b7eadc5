"""Converts a model to CTranslate2 with 8-bit weights, with its own tokenizer, and measures how near its logits are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from khmer_assets.compression.calibration import MERGED_MODEL, CalibrationSpec, calibration_samples
from khmer_assets.compression.parity import logits_alike
from khmer_assets.foundation.workers import cores
from resources.payload import PayloadRun, Refusal

ARCHITECTURES = ("qwen2", "qwen3", "llama", "gpt2")  # of those that CTranslate2 4.8 converts, the ones tried here
FIGURES = "ctranslate2.json"
FILE = "model.bin"
VOCABULARY = "vocabulary.json"
UNSCALED = ("llama3",)  # rotary embeddings that 4.8.5 converts without a word, and then does not scale
WEIGHTS = "int8_float32"  # 8-bit matrices with a scale a row, all else in float32


class Spec(CalibrationSpec):
    """On the first of the calibration texts the logits are compared."""


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `model.bin` with its configuration and vocabulary, the tokenizer, and `ctranslate2.json` with the figures
    that are returned: those of `logits_alike`, and in `tokens_renamed` how many ids the tokenizer names otherwise.

    Raises `Refusal` when CTranslate2 cannot convert the model.
    """
    import ctranslate2
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    convert(spec.model, run.output)
    tokenizer.save_pretrained(run.output)
    names = json.loads((run.output / VOCABULARY).read_text())
    generator = ctranslate2.Generator(str(run.output), intra_threads=cores())
    texts = calibration_samples(spec, tokenizer)
    figures = {
        MERGED_MODEL: spec.model.name,
        "tokens_renamed": sum(names[number] != token for token, number in tokenizer.get_vocab().items()),
        **logits_alike(
            spec.model, tokenizer, texts, spec.length, lambda ids: np.array(generator.forward_batch([ids]))[0]
        ),
        "ctranslate2_bytes": (run.output / FILE).stat().st_size,
    }
    (run.output / FIGURES).write_text(json.dumps(figures, indent=1))
    return figures


def rotation_of(config: Mapping[str, Any]) -> str:
    """The kind of rotary embeddings that a model's configuration names."""
    told = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return str(told.get("rope_type") or told.get("type") or "default")


def convert(model: Path, folder: Path, weights: str = WEIGHTS) -> None:
    """Convert the transformers folder `model` into the folder. Raises `Refusal` when CTranslate2 has no counterpart."""
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(model)
    if config.model_type not in ARCHITECTURES:
        raise Refusal(f"a {config.model_type!r} model is not converted to CTranslate2; use {', '.join(ARCHITECTURES)}")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        raise Refusal("a model with sliding-window layers is not converted to CTranslate2; turn use_sliding_window off")
    if (rotation := rotation_of(config.to_dict())) in UNSCALED:
        raise Refusal(f"CTranslate2 reads a model with {rotation} rotary embeddings as if they were not scaled")
    try:
        TransformersConverter(str(model)).convert(str(folder), quantization=weights, force=True)
    except (NotImplementedError, ValueError) as error:
        raise Refusal(f"CTranslate2 cannot convert {model}: {error}; leave ctranslate2 out of the variants") from None
    # the library does not load a configuration with tokens that a tokenizer has not
    file, tokenizer = folder / "config.json", AutoTokenizer.from_pretrained(model)
    settings = json.loads(file.read_text())
    settings["bos_token"] = settings["bos_token"] or tokenizer.pad_token or tokenizer.eos_token
    settings["unk_token"] = settings["unk_token"] or ""
    file.write_text(json.dumps(settings, indent=1))
