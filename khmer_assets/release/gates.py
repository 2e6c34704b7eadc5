"""Which variant becomes the release, and the gates that it must pass before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from khmer_assets.compression.variants import Variant
from khmer_assets.foundation.settings import PositiveFloat, Ratio, Settings


class Release(Settings):
    """Which variant is served, and the gates that it must pass. llama.cpp serves a GGUF file, vLLM the others."""

    variant: Variant
    max_bits_per_character: PositiveFloat
    min_answer_accuracy: Ratio


@dataclass(frozen=True)
class Verdict:
    """What a gate says of the variant; `description` names what was measured and what the recipe asks for."""

    gate: str
    passed: bool
    description: str
    figures: dict[str, float]


GATES = {
    "variant_predicts_text": "Bits a character of held-out text stay below the recipe's limit in every language.",
    "variant_answers": "The share of test chats that are answered exactly reaches the recipe's floor.",
}


def judge(settings: Release, figures: Mapping[str, Any]) -> list[Verdict]:
    """What each of the `GATES` says of the variant's `figures` in the benchmark report. What was not measured fails."""
    bits: dict[str, float] = figures.get("bits_per_character") or {}
    accuracy: float | None = figures.get("answer_accuracy")
    limit, floor = settings.max_bits_per_character, settings.min_answer_accuracy
    if bits:
        language, most = max(bits.items(), key=lambda item: item[1])
        predicts = f"{most:.3f} bits a character in {language}"
    else:
        predicts = "bits a character were not measured"
    answers = "exact answers were not measured" if accuracy is None else f"{accuracy:.1%} of the answers are exact"
    return [
        Verdict(
            "variant_predicts_text",
            bool(bits) and most <= limit,
            f"{predicts}, release.max_bits_per_character is {limit:g}",
            {**bits, "limit": limit},
        ),
        Verdict(
            "variant_answers",
            accuracy is not None and accuracy >= floor,
            f"{answers}, release.min_answer_accuracy is {floor:.1%}",
            {"floor": floor, **({} if accuracy is None else {"answer_accuracy": accuracy})},
        ),
    ]
