"""Measures an adapter: its held-out chats, answered by its model with and without it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.evaluation.engines import TransformersEngine
from khmer_assets.evaluation.evaluate import Evaluation, tested_chats
from khmer_assets.evaluation.examination import Examination
from khmer_assets.finetuning.encoding import encode_chats
from khmer_assets.finetuning.sft import answer_loss
from khmer_assets.foundation.tables import markdown_table
from resources.payload import PayloadRun, Refusal

SHOWN_ANSWERS = 10


class Spec(BaseModel):
    """Folders of merged_model, domain_adapter and adapter_chats; `context_length` in tokens."""

    model: Path
    adapter: Path
    chats: Path
    settings: Evaluation
    context_length: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `evaluation.json`: loss (nats a token of the answers) and answer_accuracy, `with` it and `without`.

    Raises `Refusal` when no chat is held out.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoTokenizer

    from khmer_assets.training import models

    chats = tested_chats(spec.chats)
    if not chats:
        raise Refusal("adapter_chats has no chat with split 'test' to measure the adapter on; bring more chats")
    tokenizer = AutoTokenizer.from_pretrained(spec.model)
    base = models.load_model(spec.model, torch.bfloat16).to(models.device())  # as it is served
    model = PeftModel.from_pretrained(base, spec.adapter).eval()
    examples = encode_chats(tokenizer, chats, spec.context_length).examples
    engine = TransformersEngine(model, spec.context_length)
    examination = Examination(engine, tokenizer, spec.settings.max_new_tokens)

    def measured() -> tuple[dict[str, float], list[dict[str, str]]]:
        mistakes = examination.mistakes(chats)
        loss, accuracy = answer_loss(model, examples, "float32"), 1 - len(mistakes) / len(chats)
        return {"loss": loss, "answer_accuracy": accuracy}, mistakes

    run.log(f"{len(chats)} held-out chats, with the adapter and without it")
    figures, mistakes = measured()
    with model.disable_adapter():
        without, _ = measured()
    evaluation = {"chats": len(chats), "with": figures, "without": without, "mistakes": mistakes}
    (run.output / "evaluation.json").write_text(json.dumps(evaluation, ensure_ascii=False, indent=1))
    return {
        **figures,
        **{f"{name}_without": value for name, value in without.items()},
        "wrong_answers": markdown_table(pl.DataFrame(mistakes[:SHOWN_ANSWERS])) if mistakes else "none",
    }
