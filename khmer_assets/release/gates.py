"""Which variant becomes the release, and the gates that it must pass before."""

from khmer_assets.compression.variants import Variant, artifact_of
from khmer_assets.foundation.settings import PositiveFloat, Ratio, Settings


class Release(Settings):
    """Which variant is served, and the gates that it must pass. llama.cpp serves a GGUF file, vLLM the others."""

    variant: Variant
    max_bits_per_character: PositiveFloat
    min_answer_accuracy: Ratio

    @property
    def artifact(self) -> tuple[str, str | None]:
        """The asset that makes the variant, and the partition of it that is the variant, if it has partitions."""
        return artifact_of(self.variant)
