"""The variants of the model that there are, and the settings of all that makes them."""

from typing import Annotated, get_args

from pydantic import AfterValidator

from khmer_assets.compression import ctranslate2, onnx
from khmer_assets.compression.awq import AwqSettings
from khmer_assets.compression.calibration import CalibrationSettings
from khmer_assets.compression.gguf import ARCHITECTURES, Quantization
from khmer_assets.compression.prune import PruningSettings
from khmer_assets.training.models import CONV1D_ARCHITECTURES

WHOLE = ("merged", "base")  # the model after finetuning and, where a recipe has none, before
SERVED = ("pruned", "awq", *(f"gguf {quantization}" for quantization in get_args(Quantization)))
COMPRESSED = (*SERVED, "ctranslate2", "onnx")  # the last two are for programs that bring their library
FORMS = {
    "gguf": ("GGUF", ARCHITECTURES),
    "ctranslate2": ("CTranslate2 model", ctranslate2.ARCHITECTURES),
    "onnx": ("ONNX", onnx.ARCHITECTURES),
}


def _compressed(variant: str) -> str:
    if variant not in COMPRESSED:
        raise ValueError(f"expected one of {', '.join(COMPRESSED)}")
    return variant


def _served(variant: str) -> str:
    if variant in COMPRESSED and variant not in SERVED:
        raise ValueError(f"neither vLLM nor llama.cpp serves it; expected one of {', '.join((*WHOLE, *SERVED))}")
    if variant not in (*WHOLE, *SERVED):
        raise ValueError(f"expected one of {', '.join((*WHOLE, *SERVED))}")
    return variant


Variant = Annotated[str, AfterValidator(_served)]


class Compression(CalibrationSettings, PruningSettings, AwqSettings):
    """How the model is made smaller. `variants`: which smaller ones are made; the whole model always is."""

    variants: list[Annotated[str, AfterValidator(_compressed)]] = []


def artifact_of(variant: str, chain: str = "merged_model") -> tuple[str, str | None]:
    """The asset that makes the variant, and the partition of it that is the variant, if it has partitions; `chain` is
    the asset that makes the whole model.

    >>> artifact_of("gguf Q8_0")
    ('gguf_model', 'Q8_0')
    """
    if variant in WHOLE:
        return chain, None
    name, _, quantization = variant.partition(" ")
    return f"{name}_model", quantization or None


def quantizations_of(variants: list[str]) -> list[str]:
    """The quantizations of the GGUF files among the variants."""
    return [variant.removeprefix("gguf ") for variant in variants if variant.startswith("gguf ")]


def reason_against(variant: str, architecture: str, rotation: str = "default") -> str | None:
    """Why the variant cannot be made of a model of this architecture, with rotary embeddings of this kind; None when it
    can."""
    if variant in ("pruned", "awq") and architecture in CONV1D_ARCHITECTURES:
        return f"a {architecture} model has Conv1D layers, which llmcompressor does not compress"
    for beginning, (form, known) in FORMS.items():
        if variant.startswith(beginning) and architecture not in known:
            return f"no {form} is written of a {architecture} model, only of {', '.join(known)}"
    if variant == "ctranslate2" and rotation in ctranslate2.UNSCALED:
        return f"CTranslate2 does not scale rotary embeddings as a model with {rotation} does"
    return None
