"""The assets of the compression stage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from khmer_assets.compression import awq, ctranslate2, gguf, onnx, prune
from khmer_assets.compression.variants import Compression, quantizations_of, reason_against
from khmer_assets.foundation.settings import code_version
from khmer_assets.training.models import BASE_RECORD
from resources.compute import Compute
from resources.instance import GPU_POOL

MIN_AGREEMENT, MAX_LOGITS_ERROR = 0.95, 0.05  # of 8-bit weights and activations
MAX_AWQ_RATIO = 0.4  # 4 bits and one 16-bit scale a group of 128 are 26 % of 16 bits; small groups need more


def compression_assets(
    settings: Compression, variants: list[str], model: str, texts: str, brought_in: bool, seed: int
) -> list[Any]:
    """pruned_model, awq_model, gguf_model, ctranslate2_model and onnx_model, as far as they are among the `variants`,
    with their checks.

    `model` is the asset of the model that is compressed, `texts` that of the texts to calibrate on, beside the chats.
    An open model that was `brought_in` is asked before its training whether the variants can be made of it.
    """
    quantizations = dg.StaticPartitionsDefinition(quantizations_of(variants))
    common: dict[str, Any] = {
        "group_name": "compression",
        "io_manager_key": "folders",
        "pool": GPU_POOL,
        "ins": {"model": dg.AssetIn(model), "texts": dg.AssetIn(texts), "chats": dg.AssetIn("chat_dataset")},
    }
    version = code_version(3, compression=settings.model_dump(exclude={"variants"}), seed=seed)

    def calibration(model: Path, texts: Path, chats: Path) -> dict[str, Any]:
        return {
            "model": model,
            "mixture": texts,
            "chats": chats,
            "samples": settings.calibration_samples,
            "length": settings.calibration_length,
            "seed": seed,
        }

    @dg.asset(**common, kinds={"huggingface"}, code_version=version)
    def pruned_model(
        context: dg.AssetExecutionContext, compute: Compute, model: Path, texts: Path, chats: Path
    ) -> Iterator[dg.Output[Path]]:
        """A transformers folder in bfloat16, Linear weights 2:4 sparse but stored dense; `pruning.json` measures it."""
        spec = prune.Spec(recovery_steps=settings.recovery_steps, **calibration(model, texts, chats))
        yield from compute.materialize(context, prune.__name__, spec)

    @dg.asset(**common, kinds={"huggingface"}, code_version=version)
    def awq_model(
        context: dg.AssetExecutionContext, compute: Compute, model: Path, texts: Path, chats: Path
    ) -> Iterator[dg.Output[Path]]:
        """A transformers folder with 4-bit Linear weights (compressed-tensors W4A16); `awq.json` holds their bytes."""
        spec = awq.Spec(group_size=settings.awq_group_size, **calibration(model, texts, chats))
        yield from compute.materialize(context, awq.__name__, spec)

    @dg.asset(**common, kinds={"gguf"}, partitions_def=quantizations, code_version=version)
    def gguf_model(
        context: dg.AssetExecutionContext, compute: Compute, model: Path, texts: Path, chats: Path
    ) -> Iterator[dg.Output[Path]]:
        """One GGUF file for llama.cpp, quantized as the partition's name says; `gguf.json` tells how it reads text."""
        quantization: Any = context.partition_key
        spec = gguf.Spec(quantization=quantization, **calibration(model, texts, chats))
        yield from compute.materialize(context, gguf.__name__, spec)

    @dg.asset(**common, kinds={"ctranslate2"}, code_version=version)
    def ctranslate2_model(
        context: dg.AssetExecutionContext, compute: Compute, model: Path, texts: Path, chats: Path
    ) -> Iterator[dg.Output[Path]]:
        """A CTranslate2 folder with 8-bit weights, and the tokenizer; `ctranslate2.json` measures its logits."""
        spec = ctranslate2.Spec(**calibration(model, texts, chats))
        yield from compute.materialize(context, ctranslate2.__name__, spec)

    @dg.asset(**common, kinds={"onnx"}, code_version=version)
    def onnx_model(
        context: dg.AssetExecutionContext, compute: Compute, model: Path, texts: Path, chats: Path
    ) -> Iterator[dg.Output[Path]]:
        """`model.onnx`, a decoder with 8-bit weights whose keys and values are inputs and outputs, for onnxruntime, and
        the tokenizer; `onnx.json` measures its logits."""
        spec = onnx.Spec(**calibration(model, texts, chats))
        yield from compute.materialize(context, onnx.__name__, spec)

    @dg.asset_check(asset="pruned_model")
    def pruning_is_two_of_four(pruned_model: Path) -> dg.AssetCheckResult:
        """Half of the weights of each Linear layer are zero, two in each four, and no sparsity_config stops vLLM."""
        figures = json.loads((pruned_model / prune.FIGURES).read_text())
        halves = figures["zeros_min"] >= 0.5 and figures["zeros_max"] <= 0.51
        passed = halves and figures["groups_broken"] == 0 and not figures["sparsity_config"]
        return dg.AssetCheckResult(passed=passed, metadata=figures)

    @dg.asset_check(asset="awq_model", blocking=True)
    def awq_saves_memory(awq_model: Path) -> dg.AssetCheckResult:
        """The quantized Linear weights, scales included, take at most 40 % of their bytes in bfloat16."""
        figures = json.loads((awq_model / awq.FIGURES).read_text())
        return dg.AssetCheckResult(passed=figures["linear_bytes_ratio"] <= MAX_AWQ_RATIO, metadata=figures)

    @dg.asset_check(asset="gguf_model", partitions_def=quantizations, blocking=True)
    def gguf_reads_text_alike(gguf_model: Path) -> dg.AssetCheckResult:
        """llama.cpp gives the token ids of transformers for each text."""
        figures = json.loads((gguf_model / gguf.FIGURES).read_text())
        return dg.AssetCheckResult(passed=figures["texts_with_equal_ids"] == figures["texts"], metadata=figures)

    @dg.asset_check(asset="ctranslate2_model")
    def ctranslate2_predicts_alike(ctranslate2_model: Path) -> dg.AssetCheckResult:
        """Its tokens have the tokenizer's ids, and it names the next token as the model does, with logits near its."""
        figures = json.loads((ctranslate2_model / ctranslate2.FIGURES).read_text())
        return dg.AssetCheckResult(passed=_is_near(figures) and figures["tokens_renamed"] == 0, metadata=figures)

    @dg.asset_check(asset="onnx_model")
    def onnx_predicts_alike(onnx_model: Path) -> dg.AssetCheckResult:
        """It names the next token as the model does, with logits near its."""
        figures = json.loads((onnx_model / onnx.FIGURES).read_text())
        return dg.AssetCheckResult(passed=_is_near(figures), metadata=figures)

    @dg.asset_check(asset="base_model", blocking=True)
    def variants_can_be_made(base_model: Path) -> dg.AssetCheckResult:
        """Each variant of the recipe can be made of a model of this architecture."""
        architecture = json.loads((base_model / BASE_RECORD).read_text())["architecture"]
        rotation = ctranslate2.rotation_of(json.loads((base_model / "config.json").read_text()))
        reasons = {variant: reason_against(variant, architecture, rotation) for variant in variants}
        told = "; ".join(f"{variant}: {reason}" for variant, reason in reasons.items() if reason)
        advice = f"take out of compression.variants what cannot be made: {told}" if told else None
        return dg.AssetCheckResult(passed=not told, description=advice)

    made: list[Any] = [variants_can_be_made] if brought_in else []
    if "pruned" in variants:
        made += [pruned_model, pruning_is_two_of_four]
    if "awq" in variants:
        made += [awq_model, awq_saves_memory]
    if quantizations.get_partition_keys():
        made += [gguf_model, gguf_reads_text_alike]
    if "ctranslate2" in variants:
        made += [ctranslate2_model, ctranslate2_predicts_alike]
    if "onnx" in variants:
        made += [onnx_model, onnx_predicts_alike]
    return made


def _is_near(figures: dict[str, Any]) -> bool:
    """At least `MIN_AGREEMENT` of the positions name the same next token, and the logits' error is at most
    `MAX_LOGITS_ERROR` of the logits."""
    return bool(figures["top1_agreement"] >= MIN_AGREEMENT and figures["logits_error"] <= MAX_LOGITS_ERROR)
