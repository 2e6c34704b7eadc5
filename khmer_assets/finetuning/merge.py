"""Merges a LoRA adapter into its base model, and measures that the merged model is equal to the two together.

The sums are done in float32 and each weight is rounded once, to bfloat16, when it is saved. An adapter that was trained
on a base in 4 bits is merged into the base in 16 bits: to round the base to 4 bits first would keep its errors in the
merged model, and to round the merged model to 4 bits again would lose the adapter.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import BaseModel, Field

from khmer_assets.finetuning import lora
from khmer_assets.training.models import BASE_RECORD, device, load_model
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 128
NEW_TOKENS = 32
# Addition in another order loses about one bit in each of some thousand sums, and float32 keeps 24 bits.
FLOAT32_TOLERANCE = 1e-4
GREEDY_AGREEMENT = 0.995


class Spec(BaseModel):
    """`base` and `adapter` are a transformers and a peft folder, `texts` a folder with a data.parquet of the columns
    text and split.

    `samples` held-out documents are compared, each to at most 128 tokens.
    """

    base: Path
    adapter: Path
    texts: Path
    samples: int = Field(gt=0)


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the merged model in bfloat16, its tokenizer, the base's base.json (the marks of a chat are no longer new)
    and `merge.json` with the figures that are returned.

    `equal` holds when the merged model gives base and adapter's logits within float32 rounding (`FLOAT32_TOLERANCE` of
    the largest logit) and each saved weight is the merged float32 weight rounded once. The other figures
    compare the saved model, computing in float32, with base and adapter: largest difference of a logit, share of
    positions with the same most likely token, and greedy_agreement, the share of the 32 greedy tokens behind each text
    that the saved model would choose too, given those before (`greedy_equal`: 99.5 % or more). For an adapter that was
    trained on a base in 4 bits, the figures with nf4_ compare the saved model with what was trained.
    Raises `Refusal` when the adapter does not fit the base, or when there is no text to compare on.
    """
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec.base)
    samples = [
        torch.tensor([ids[:MAX_TOKENS]], device=device())
        for ids in tokenizer(_texts(spec.texts, spec.samples), add_special_tokens=False)["input_ids"]
    ]
    run.log(f"comparing on {len(samples)} texts")
    trained = None
    if _quantization(spec.adapter) == "nf4":
        trained = _Behavior(_adapted(lora.load_base(spec.base, "nf4", "bfloat16"), spec), samples)
    adapted = _adapted(load_model(spec.base).to(device()), spec)
    expected = _Behavior(adapted, samples)

    merged = adapted.merge_and_unload(safe_merge=True)
    difference = max(_difference(_logits(merged, ids), e) for ids, e in zip(samples, expected.logits, strict=True))
    largest = max(float(e.abs().max()) for e in expected.logits)
    merged.to(torch.bfloat16).save_pretrained(run.output)
    tokenizer.save_pretrained(run.output)
    record = lora.base_record(spec.base) | {"chat_marks_are_new": False}
    (run.output / BASE_RECORD).write_text(json.dumps(record, ensure_ascii=False, indent=1))
    saved = load_model(run.output, torch.bfloat16).to(device()).eval()
    rounded, weights = merged.state_dict(), saved.state_dict()
    exact = weights.keys() == rounded.keys() and all(torch.equal(weights[name], rounded[name]) for name in rounded)
    del merged, adapted, rounded, weights  # there is room for one model in float32, not for two

    saved = saved.float()
    told = expected.compared_with(saved)
    figures: dict[str, Any] = {
        "equal": exact and difference <= FLOAT32_TOLERANCE * largest,
        "texts": len(samples),
        "positions": sum(e.shape[0] for e in expected.logits),
        "largest_logit": largest,
        "float32_max_difference": difference,
        "weights_rounded_once": exact,
        "bfloat16_max_difference": told["max_difference"],
        "bfloat16_top1_agreement": told["top1_agreement"],
        "greedy_agreement": told["greedy_agreement"],
        "greedy_equal": told["greedy_agreement"] >= GREEDY_AGREEMENT,
        **({f"nf4_{name}": value for name, value in trained.compared_with(saved).items()} if trained else {}),
    }
    (run.output / "merge.json").write_text(json.dumps(figures, indent=1))
    return figures


class _Behavior:
    """What a model says to each sample: the logits at its tokens, and the greedy tokens behind it."""

    def __init__(self, model: Any, samples: list["torch.Tensor"]):
        self.samples = samples
        self.logits = [_logits(model, ids) for ids in samples]
        self.continued = [_continued(model, ids) for ids in samples]

    def compared_with(self, model: Any) -> dict[str, float]:
        """How another model differs from it."""
        actual = [_logits(model, ids) for ids in self.samples]
        same = sum(int((a.argmax(-1) == e.argmax(-1)).sum()) for a, e in zip(actual, self.logits, strict=True))
        chosen = greedy = 0
        for ids, whole in zip(self.samples, self.continued, strict=True):
            at = ids.shape[1]
            own = _logits(model, whole)[at - 1 : -1].argmax(-1)
            greedy += int((own == whole[0, at:].cpu()).sum())
            chosen += len(own)
        return {
            "max_difference": max(_difference(a, e) for a, e in zip(actual, self.logits, strict=True)),
            "top1_agreement": same / sum(e.shape[0] for e in self.logits),
            "greedy_agreement": greedy / chosen,
        }


def _adapted(base: Any, spec: Spec) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(base, spec.adapter).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise Refusal(f"{spec.adapter} is no adapter for the model in {spec.base}: {error}") from None


def _quantization(adapter: Path) -> str:
    file = adapter / "training.json"
    return str(json.loads(file.read_text()).get("quantization", "none")) if file.exists() else "none"


def _texts(mixture: Path, count: int) -> list[str]:
    frame = pl.scan_parquet(mixture / "data.parquet").filter(pl.col("split") == "validation")
    texts: list[str] = (
        frame.select("text").bottom_k(count, by="text").sort("text").collect(engine="streaming")["text"].to_list()
    )
    if not texts:
        raise Refusal(f"{mixture} has no text with split 'validation' to compare on; hold more of the texts out")
    return texts


def _logits(model: Any, ids: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.inference_mode():
        return model(input_ids=ids).logits[0].float().cpu()


def _continued(model: Any, ids: "torch.Tensor") -> "torch.Tensor":
    return model.generate(
        input_ids=ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=NEW_TOKENS, do_sample=False
    )


def _difference(a: "torch.Tensor", b: "torch.Tensor") -> float:
    return float((a - b).abs().max())
