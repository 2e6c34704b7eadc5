"""Merges a LoRA adapter into its base model, and measures that the merged model is equal to the two together.

The sums are done in float32 and each weight is rounded once, to bfloat16, when it is saved.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import BaseModel, Field

from khmer_assets.training.models import device, load_model
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 128
NEW_TOKENS = 16
# Addition in another order loses about one bit in each of some thousand sums, and float32 keeps 24 bits.
FLOAT32_TOLERANCE = 1e-4


class Spec(BaseModel):
    """`base` and `adapter` are a transformers and a peft folder, `texts` is the folder of training_mixture.

    `samples` held-out documents are compared, each to at most 128 tokens.
    """

    base: Path
    adapter: Path
    texts: Path
    samples: int = Field(gt=0)


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the merged model in bfloat16, its tokenizer and `merge.json` with the figures that are returned.

    `equal` holds when the merged model gives base and adapter's logits within float32 rounding (`FLOAT32_TOLERANCE` of
    the largest logit) and each saved weight is the merged float32 weight rounded once. The other figures
    compare the saved model, computing in float32, with base and adapter: largest difference of a logit, share of
    positions with the same most likely token, share of texts that are continued by the same 16 tokens.
    Raises `Refusal` when the adapter does not fit the base, or when there is no text to compare on.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.base)
    samples = [
        torch.tensor([ids[:MAX_TOKENS]], device=device())
        for ids in tokenizer(_texts(spec.texts, spec.samples), add_special_tokens=False)["input_ids"]
    ]
    base = load_model(spec.base).to(device())
    try:
        adapted = PeftModel.from_pretrained(base, spec.adapter).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise Refusal(f"{spec.adapter} is no adapter for the model in {spec.base}: {error}") from None
    run.log(f"comparing on {len(samples)} texts")
    expected = [_logits(adapted, ids) for ids in samples]
    answers = [_continuation(adapted, ids) for ids in samples]

    merged = adapted.merge_and_unload(safe_merge=True)
    merged_difference = max(_difference(_logits(merged, ids), e) for ids, e in zip(samples, expected, strict=True))
    largest = max(float(e.abs().max()) for e in expected)
    rounded = {name: weight.to(torch.bfloat16) for name, weight in merged.state_dict().items()}

    merged.to(torch.bfloat16).save_pretrained(run.output)
    tokenizer.save_pretrained(run.output)
    del merged, adapted, base
    saved = load_model(run.output).to(device()).eval()
    weights = saved.state_dict()
    exact = weights.keys() == rounded.keys() and all(
        torch.equal(weights[name].to(torch.bfloat16), weight) for name, weight in rounded.items()
    )
    actual = [_logits(saved, ids) for ids in samples]
    same = sum(int((a.argmax(-1) == e.argmax(-1)).sum()) for a, e in zip(actual, expected, strict=True))
    positions = sum(e.shape[0] for e in expected)
    same_answers = sum(_continuation(saved, ids) == answer for ids, answer in zip(samples, answers, strict=True))
    figures: dict[str, Any] = {
        "equal": exact and merged_difference <= FLOAT32_TOLERANCE * largest,
        "texts": len(samples),
        "positions": positions,
        "largest_logit": largest,
        "float32_max_difference": merged_difference,
        "weights_rounded_once": exact,
        "bfloat16_max_difference": max(_difference(a, e) for a, e in zip(actual, expected, strict=True)),
        "bfloat16_top1_agreement": same / positions,
        "bfloat16_same_answers": same_answers / len(samples),
    }
    (run.output / "merge.json").write_text(json.dumps(figures, indent=1))
    return figures


def _texts(mixture: Path, count: int) -> list[str]:
    frame = pl.scan_parquet(mixture / "data.parquet").filter(pl.col("split") == "validation")
    texts: list[str] = (
        frame.select("text").bottom_k(count, by="text").sort("text").collect(engine="streaming")["text"].to_list()
    )
    if not texts:
        raise Refusal(f"{mixture} has no text with split 'validation' to compare on; raise mixture.validation_ratio")
    return texts


def _logits(model: Any, ids: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.inference_mode():
        return model(input_ids=ids).logits[0].float().cpu()


def _continuation(model: Any, ids: "torch.Tensor") -> list[int]:
    out = model.generate(
        input_ids=ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=NEW_TOKENS, do_sample=False
    )
    return out[0, ids.shape[1] :].tolist()


def _difference(a: "torch.Tensor", b: "torch.Tensor") -> float:
    return float((a - b).abs().max())
