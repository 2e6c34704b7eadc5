"""What the trainings of this project reach on a GPU: tokens a second, share of the hardware's peak, memory.

    python -m benchmarks.gpu

Models have the shapes of real ones and random weights: pretraining a GPT-2 of 0.5B parameters from scratch, and LoRA
and QLoRA of a 3B model (Qwen2.5-3B's shape), beside TRL's SFTTrainer with its defaults on the same chats, and what vLLM
generates with the merged model's shape. Each runs in a process of its own; the first steps are not counted. Without a
GPU it says so and does the same with toys, so that it is known to run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import torch

from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.pretraining.decoder import Decoder, new_model
from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from khmer_assets.training import hardware
from khmer_assets.training.settings import TrainingSettings

GPU = torch.cuda.is_available()
UNCOUNTED, COUNTED = (5, 20) if GPU else (1, 3)  # steps
GPT2 = {"hidden_size": 1536, "intermediate_size": 6144, "layers": 24, "attention_heads": 24, "key_value_heads": 24}
QWEN = {"hidden_size": 2048, "intermediate_size": 11008, "layers": 36, "attention_heads": 16, "key_value_heads": 2}
TOY = {"hidden_size": 128, "intermediate_size": 256, "layers": 2, "attention_heads": 2, "key_value_heads": 2}
GPT2_VOCABULARY, QWEN_VOCABULARY = (50_257, 151_936) if GPU else (512, 512)
CONTEXT, ROWS = (2048, 8) if GPU else (64, 2)
CHAT_LENGTHS = (128, 256, 384, 512, 512, 640, 768, 1024) if GPU else (16, 24, 32, 64)  # tokens, of a step's chats
RANK, ALPHA = 32, 64
PROMPTS, ANSWER = (256, 256) if GPU else (4, 8)
VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
folder, prompts, answer = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
engine = LLM(folder, load_format="dummy", dtype="bfloat16", max_model_len=1024, enforce_eager=answer < 64)
asked = [{"prompt_token_ids": [5 + (i * 7 + j) % 200 for j in range(32)]} for i in range(prompts)]
sampling = SamplingParams(max_tokens=answer, ignore_eos=True)
engine.generate(asked[:2], sampling)
started = time.monotonic()
engine.generate(asked, sampling)
print(json.dumps({"tokens_per_second": prompts * answer / (time.monotonic() - started)}))
"""


def settings(**changes: Any) -> TrainingSettings:
    """Of a training in bfloat16 where the hardware computes in it."""
    return TrainingSettings(learning_rate=1e-4, warmup_ratio=0, batch_size=1, checkpoint_every=1, **changes)


def save_base(folder: Path) -> None:
    """A model of Qwen2.5-3B's shape in bfloat16, with a small tokenizer."""
    from transformers import AutoModelForCausalLM

    tokenizer = wrap(train_bpe(["ទន្លេ", "river"] * 9, 300))
    decoder = Decoder(architecture="qwen2", **(QWEN if GPU else TOY))
    with torch.device("meta"):
        config = new_model(decoder, 2048, tokenizer, seed=1).config
    config.vocab_size = QWEN_VOCABULARY
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "base.json").write_text(json.dumps({"chat_marks_are_new": False}))


def chats() -> list[list[list[int]]]:
    """Token ids of the chats of each step."""
    steps = range(UNCOUNTED + COUNTED)
    return [[[5 + (step + 7 * at) % 250 for at in range(length)] for length in CHAT_LENGTHS] for step in steps]


def timed(step: Callable[[int], object]) -> float:
    """Seconds of the counted steps."""
    for number in range(UNCOUNTED):
        step(number)
    _wait()
    started = time.monotonic()
    for number in range(UNCOUNTED, UNCOUNTED + COUNTED):
        step(number)
    _wait()
    return time.monotonic() - started


def pretraining(base: Path) -> dict[str, float]:
    """The loop's engine on a new GPT-2, with AdamW."""
    from khmer_assets.training.engines import Engine
    from khmer_assets.training.models import device

    decoder = Decoder(architecture="gpt2", **(GPT2 if GPU else TOY))
    tokenizer = wrap(train_bpe(["ទន្លេ", "river"] * 9, 300))
    model = new_model(decoder, CONTEXT, tokenizer, seed=1)
    model.resize_token_embeddings(GPT2_VOCABULARY)
    torch.set_float32_matmul_precision("high")
    engine = Engine(model.to(device()).train(), settings(sharding="zero2"))
    ids = torch.randint(5, 250, (ROWS, CONTEXT))
    seconds = timed(lambda step: engine.update([{"input_ids": ids, "labels": ids}], 1e-4))
    return _figures(model, COUNTED * ids.numel(), seconds, CONTEXT)


def adapter(base: Path, quantization: Any) -> dict[str, float]:
    """LoRA as sft_adapter trains it: a step's chats in one row."""
    from khmer_assets.finetuning import lora, packing
    from khmer_assets.finetuning.encoding import Example
    from khmer_assets.training.engines import Engine

    how = lora.Lora(rank=RANK, alpha=ALPHA, dropout=0.0, quantization=quantization)
    model = lora.adapted(lora.load_base(base, quantization, "auto"), how, None)
    torch.set_float32_matmul_precision("high")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine = Engine(model.train(), settings())
    batches = [packing.packed([Example(ids, ids) for ids in step]) for step in chats()]
    with packing.keeps_apart(model.get_base_model(), [Example(ids, ids) for ids in chats()[0]], "auto"):
        seconds = timed(lambda step: engine.update([batches[step]], 1e-4))
    return _figures(model, COUNTED * sum(CHAT_LENGTHS), seconds, sum(CHAT_LENGTHS) // len(CHAT_LENGTHS))


def peer(base: Path, quantization: str) -> dict[str, float]:
    """TRL's SFTTrainer with its defaults, on the same chats."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip
    moments: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def on_step_end(self, *arguments: Any, **others: Any) -> None:
            _wait()
            moments.append(time.monotonic())

    folder = tempfile.mkdtemp()
    trainer = SFTTrainer(
        model=str(base),
        args=SFTConfig(
            output_dir=folder,
            max_steps=UNCOUNTED + COUNTED,
            per_device_train_batch_size=len(CHAT_LENGTHS),
            use_cpu=not GPU,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            model_init_kwargs={"quantization_config": four_bits} if quantization == "nf4" else None,
        ),
        train_dataset=Dataset.from_dict({"input_ids": [ids for step in chats() for ids in step]}),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    seconds = moments[-1] - moments[UNCOUNTED - 1]
    tokens = COUNTED * sum(CHAT_LENGTHS)
    return _figures(trainer.model, tokens, seconds, sum(CHAT_LENGTHS) // len(CHAT_LENGTHS))


def serving(base: Path) -> dict[str, float]:
    """What vLLM, in its own environment, generates with a model of that shape."""
    python = PROJECT / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        print(f"{python} is not there; `make install` makes it", file=sys.stderr)
        return {}
    command = [str(python), "-c", VLLM, str(base), str(PROMPTS), str(ANSWER)]
    environment = os.environ | {"VLLM_NO_USAGE_STATS": "1"}
    if not GPU:
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {}
    # it logs after what it has to say, on the same stream
    return dict(json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1]))


CONTENDERS: dict[str, Callable[[Path], dict[str, float]]] = {
    "pretraining": pretraining,
    "lora": lambda base: adapter(base, "none"),
    "lora_peer": lambda base: peer(base, "none"),
    "qlora": lambda base: adapter(base, "nf4"),
    "qlora_peer": lambda base: peer(base, "nf4"),
    "vllm": serving,
}


def _figures(model: Any, tokens: int, seconds: float, width: int) -> dict[str, float]:
    figures = {"tokens_per_second": tokens / seconds, "memory_mb": hardware.memory_mb()}
    if peak := hardware.peak_flops():
        figures["share_of_peak"] = figures["tokens_per_second"] * hardware.flops_a_token(model, width) / peak
    return figures


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def main() -> None:
    """Run each in a process of its own, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=CONTENDERS, help="run these alone")
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    names = arguments.only or list(CONTENDERS)
    if arguments.base:
        print(json.dumps(CONTENDERS[names[0]](arguments.base)))
        return
    device = torch.cuda.get_device_name() if GPU else "no GPU: toys on the processor"
    print(device, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        save_base(base)
        for name in names:
            command = [sys.executable, "-m", "benchmarks.gpu", "--only", name, "--base", str(base)]
            done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=False)
            found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
            columns = ("tokens_per_second", "share_of_peak", "memory_mb")
            rows.append({"": name} | {column: found.get(column) for column in columns})
            print(json.dumps(rows[-1]), flush=True)
    schema = {"": pl.String, "tokens_per_second": pl.Float64, "share_of_peak": pl.Float64, "memory_mb": pl.Float64}
    print(markdown_table(pl.DataFrame(rows, schema=schema)))
    told = {f"{row['']}_{key}": value for row in rows for key, value in row.items() if key and value is not None}
    print(json.dumps({"device": device} | {key: round(float(value), 4) for key, value in told.items()}))


if __name__ == "__main__":
    main()
