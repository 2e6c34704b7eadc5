"""What can be made of a model, and what of it can be served, is told when the recipe is read."""

import pytest
from pydantic import ValidationError

from khmer_assets.compression.variants import COMPRESSED, Compression, artifact_of, reason_against
from khmer_assets.release.gates import Release


@pytest.mark.parametrize("variant", COMPRESSED)
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_every_variant_is_made_of_llama_and_qwen(variant, architecture):
    assert reason_against(variant, architecture) is None


@pytest.mark.parametrize(
    ("variant", "architecture", "rotation", "reason"),
    [
        ("awq", "gpt2", "default", "Conv1D"),
        ("gguf Q8_0", "opt", "default", "no GGUF is written of a opt model"),
        ("onnx", "opt", "default", "no ONNX is written of a opt model"),
        ("ctranslate2", "opt", "default", "no CTranslate2 model is written"),
        ("ctranslate2", "llama", "llama3", "does not scale rotary embeddings"),
    ],
)
def test_what_cannot_be_made_has_a_reason(variant, architecture, rotation, reason):
    assert reason in (reason_against(variant, architecture, rotation) or "")


def test_a_variant_is_one_artifact():
    assert artifact_of("gguf Q4_K_M") == ("gguf_model", "Q4_K_M")
    assert artifact_of("onnx") == ("onnx_model", None)
    assert artifact_of("base", "base_model") == ("base_model", None)


def test_an_unknown_variant_is_refused_with_those_that_there_are():
    with pytest.raises(ValidationError, match=r"expected one of pruned, awq, gguf Q4_K_M.*ctranslate2, onnx"):
        Compression(variants=["int8"])


@pytest.mark.parametrize("variant", ["ctranslate2", "onnx"])
def test_what_no_engine_serves_is_not_released(variant):
    given = {"variant": variant, "max_bits_per_character": 4.0, "min_answer_accuracy": 0.4}
    with pytest.raises(ValidationError, match=r"neither vLLM nor llama\.cpp serves it"):
        Release(**given)


def test_the_share_of_zeros_is_no_setting():
    with pytest.raises(ValidationError, match="prune_ratio"):
        Compression(prune_ratio=0.5)
