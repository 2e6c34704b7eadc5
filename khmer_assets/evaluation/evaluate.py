"""Measures one variant of the model: held-out quality, chat answers, size, memory and speed.

A variant runs in a process of its own, so that the memory that it needs can be told. GGUF variants run in llama.cpp,
all others in transformers; both answer greedily.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from khmer_assets.evaluation.engines import Engine, LlamaCppEngine, TransformersEngine
from khmer_assets.foundation.files import size_of_folder
from khmer_assets.foundation.settings import PositiveInt, Settings
from khmer_assets.instructions.chats import chats_of
from khmer_assets.training.held_out import quality_by_language
from resources.payload import PayloadRun


class Evaluation(Settings):
    """`max_documents` held-out documents a language are scored; `prompts` are answered by every variant."""

    max_documents: PositiveInt
    max_new_tokens: PositiveInt
    prompts: Annotated[list[str], Field(min_length=1)]


TEST_CHATS = 60


class Spec(BaseModel):
    """`model` is the variant's folder, `tokenizer` that of the merged model (the ids are the same in all variants)."""

    variant: str
    model: Path
    tokenizer: Path
    mixture: Path
    chats: Path
    settings: Evaluation
    context_length: int


class Examination:
    """Chats answered by an engine; `tokens` and `seconds` add up what was generated, and in what time."""

    def __init__(self, engine: Engine, tokenizer: Any, max_new_tokens: int, context_length: int):
        self.engine = engine
        self.tokenizer = tokenizer
        self.max_new_tokens = max_new_tokens
        self.context_length = context_length
        self.tokens = 0
        self.seconds = 0.0

    def answer(self, messages: list[dict[str, str]]) -> str:
        """The greedy answer to the last of the messages."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        started = time.perf_counter()
        limit = min(self.max_new_tokens, self.context_length - len(prompt))
        ids = self.engine.generate(prompt, self.tokenizer.eos_token_id, limit) if limit > 0 else []
        self.seconds += time.perf_counter() - started
        self.tokens += len(ids)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def mistakes(self, chats: list[list[dict[str, str]]]) -> list[dict[str, str]]:
        """Prompt, expected and given answer of the chats whose last message the engine does not give exactly."""
        found = []
        for chat in chats:
            given = self.answer(chat[:-1])
            if given != chat[-1]["content"].strip():
                found.append({"prompt": chat[-2]["content"], "expected": chat[-1]["content"], "answer": given})
        return found


def tested_chats(chats: Path) -> list[list[dict[str, str]]]:
    """The held-out chats that are asked."""
    return [chat for chat in chats_of(chats, "test") if len(chat) > 1][:TEST_CHATS]


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `evaluation.json`: quality by language, answers, accuracy, bytes, peak memory (MB), tokens a second."""
    import torch
    from transformers import AutoTokenizer

    from khmer_assets.training import models

    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what was imported so far
    before = _memory("VmRSS")
    gguf = next(spec.model.glob("*.gguf"), None)
    if gguf:
        engine: Engine = LlamaCppEngine(gguf, spec.context_length)
    else:
        # in bfloat16, as it is served
        engine = TransformersEngine(models.load_model(spec.model, torch.bfloat16).to(models.device()).eval())
    run.log(f"{spec.variant}: scoring held-out text")
    quality = quality_by_language(
        engine.score, tokenizer, spec.mixture, spec.context_length, spec.settings.max_documents
    )
    run.log(f"{spec.variant}: answering")
    examination = Examination(engine, tokenizer, spec.settings.max_new_tokens, spec.context_length)
    suite = [
        {"prompt": prompt, "answer": examination.answer([{"role": "user", "content": prompt}])}
        for prompt in spec.settings.prompts
    ]
    tests = tested_chats(spec.chats)
    mistakes = examination.mistakes(tests)
    weights = [path for path in spec.model.iterdir() if path.suffix in (".safetensors", ".gguf")]
    figures = {
        "bits_per_character": {language: q["bits_per_character"] for language, q in quality.items()},
        "perplexity": {language: q["perplexity"] for language, q in quality.items()},
        "answer_accuracy": 1 - len(mistakes) / len(tests) if tests else None,
        "bytes": sum(path.stat().st_size for path in weights) or size_of_folder(spec.model),
        "memory_mb": round(_memory("VmHWM") - before),
        "tokens_per_second": examination.tokens / examination.seconds if examination.seconds else None,
    }
    evaluation = {"variant": spec.variant, **figures, "answers": suite, "mistakes": mistakes}
    (run.output / "evaluation.json").write_text(json.dumps(evaluation, ensure_ascii=False, indent=1))
    return {
        "answer_accuracy": figures["answer_accuracy"],
        **{f"bits_per_character_{language}": q["bits_per_character"] for language, q in quality.items()},
    }


def _memory(line: str) -> float:
    """A line of this process's status, such as VmRSS (now) or VmHWM (the peak), in MB."""
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) / 1024
