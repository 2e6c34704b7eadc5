"""The variants of the model that there are, and the settings of all that makes them."""

from typing import Annotated, get_args

from pydantic import AfterValidator

from khmer_assets.compression.awq import AwqSettings
from khmer_assets.compression.calibration import CalibrationSettings
from khmer_assets.compression.gguf import GgufSettings, Quantization
from khmer_assets.compression.prune import PruningSettings

TRANSFORMERS_VARIANTS = ("merged", "pruned", "awq")
VARIANTS = (*TRANSFORMERS_VARIANTS, *(f"gguf {quantization}" for quantization in get_args(Quantization)))


class Compression(CalibrationSettings, PruningSettings, AwqSettings, GgufSettings):
    """How the merged model is made smaller."""


def _known(variant: str) -> str:
    if variant not in VARIANTS:
        raise ValueError(f"expected one of {', '.join(VARIANTS)}")
    return variant


Variant = Annotated[str, AfterValidator(_known)]


def artifact_of(variant: str) -> tuple[str, str | None]:
    """The asset that makes the variant, and the partition of it that is the variant, if it has partitions.

    >>> artifact_of("gguf Q8_0")
    ('gguf_model', 'Q8_0')
    """
    name, _, quantization = variant.partition(" ")
    return f"{name}_model", quantization or None
