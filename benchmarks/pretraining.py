"""How well the sample-sized recipe learns Khmer in a given time, against a naive recipe on the same text and cores.

    python -m benchmarks.pretraining --seconds 240

The naive recipe is what a first attempt looks like: GPT-2's pre-tokenizer pattern, 16 k byte-level BPE, a GPT-2 of
4 layers of 256, float32, batches of 16 x 256 tokens and a constant learning rate of 5e-4. Each trains for the given
time; training the tokenizers is not counted. Measured are bits a character of the held-out Khmer text, of which the
content's hash chooses 4 %.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from khmer_assets.foundation.home import PROJECT
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.khmer.normalization import normalize
from khmer_assets.khmer.script import script_shares
from khmer_assets.pretraining.decoder import new_model
from khmer_assets.pretraining.packing import PackedSequences
from khmer_assets.pretraining.train import Pretraining
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.tokenizer.bpe import GPT2_PATTERN, KHMER_PATTERN, train_bpe
from khmer_assets.tokenizer.chat_template import END_OF_TEXT, wrap
from khmer_assets.training.engines import Engine
from khmer_assets.training.held_out import held_out_quality, model_scorer
from khmer_assets.training.loop import Schedule
from khmer_assets.training.optimizers import Optimizer, Stepper

DEFAULT_TEXT = ["office_help.jsonl:km", "wikipedia_lines.jsonl:text"]
HELD_OUT = 0.04


@dataclass(frozen=True)
class Contender:
    """A tokenizer's pattern and size, a model's settings, and its learning rate at a share (0 to 1) of the time."""

    pattern: str
    vocabulary_size: int
    settings: Pretraining
    optimizer: Callable[[torch.nn.Module], Stepper]
    learning_rate_at: Callable[[float], float]


class NaiveOptimizer:
    """AdamW with PyTorch's defaults."""

    def __init__(self, model: torch.nn.Module):
        self.adamw = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step(self, learning_rate: float) -> None:
        """Update with the gradients at hand, then forget them."""
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on."""
        return self.adamw.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.adamw.load_state_dict(state)


def contenders(recipe: Recipe) -> dict[str, Contender]:
    """The sample's recipe and the naive one."""
    own = recipe.pretraining
    assert own is not None and own.decoder is not None and recipe.tokenizer is not None  # the sample has them
    schedule = Schedule(own, own.steps)
    naive = own.model_copy(
        update={
            "decoder": own.decoder.model_copy(update={"architecture": "gpt2", "intermediate_size": 1024}),
            "context_length": 256,
            "batch_size": 16,
            "precision": "float32",
        }
    )
    return {
        "sample recipe": Contender(
            KHMER_PATTERN,
            recipe.tokenizer.vocabulary_size,
            own,
            lambda model: Optimizer(model, own),
            schedule.learning_rate_at,
        ),
        "naive recipe": Contender(GPT2_PATTERN, 16_000, naive, NaiveOptimizer, lambda _: 5e-4),
    }


def measure(contender: Contender, train: list[str], held_out: list[str], seconds: float, seed: int) -> dict[str, float]:
    """Train for `seconds` and score the held-out texts."""
    tokenizer = wrap(train_bpe(train, contender.vocabulary_size, contender.pattern))
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    stream = np.concatenate([np.asarray([*tokenizer(text)["input_ids"], end], dtype=np.uint32) for text in train])
    settings = contender.settings
    sequences = PackedSequences(stream, settings.context_length, settings.batch_size, seed)
    assert settings.decoder is not None
    model = new_model(settings.decoder, settings.context_length, tokenizer, seed)
    engine = Engine(model, settings, contender.optimizer(model))
    step, started = 0, time.monotonic()
    while (elapsed := time.monotonic() - started) < seconds:
        ids = torch.from_numpy(sequences.batch(step))
        rate = contender.learning_rate_at(elapsed / seconds)
        engine.update([{"input_ids": ids, "labels": ids}], rate)
        step += 1
    elapsed = time.monotonic() - started
    model.eval()
    score = model_scorer(model)
    quality = held_out_quality(score, tokenizer, end, held_out, settings.context_length)
    return {
        "bits_per_character": quality["bits_per_character"],
        "tokens_per_character": quality["tokens_per_character"],
        "steps": step,
        "tokens_per_second": step * settings.batch_size * settings.context_length / elapsed,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def khmer_texts(files: list[str], recipe: Recipe) -> list[str]:
    """The different texts, normalized, whose letters are mostly Khmer; `files` are "path:field" of JSON lines."""
    texts = set()
    for name in files:
        path, _, field = name.rpartition(":")
        if not Path(path).exists():
            sys.exit(f"{path}: no such file; name JSON lines with --text PATH:FIELD")
        for text in pl.read_ndjson(path, infer_schema_length=None)[field].drop_nulls():
            text, _ = normalize(text, recipe.normalization)
            if script_shares(text)[0] > 0.5:
                texts.add(text)
    return sorted(texts)


def main() -> None:
    """Measure both recipes, print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="training time of each recipe")
    parser.add_argument("--seed", type=int, default=1)
    data = PROJECT.parent / "shared" / "data"
    parser.add_argument("--text", action="append", metavar="PATH:FIELD", help="JSON lines to train on")
    arguments = parser.parse_args()
    recipe = Recipe.load(SAMPLE_RECIPE)
    texts = khmer_texts(arguments.text or [str(data / name) for name in DEFAULT_TEXT], recipe)
    chosen = {text: int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < HELD_OUT for text in texts}
    train, held_out = ([text for text in texts if chosen[text] is side] for side in (False, True))
    print(f"{len(train):,} texts, {sum(map(len, train)):,} characters; {torch.get_num_threads()} threads", flush=True)
    measured = {}
    for name, contender in contenders(recipe).items():
        measured[name] = measure(contender, train, held_out, arguments.seconds, arguments.seed)
        print(f"{name}: {measured[name]['bits_per_character']:.3f} bits a character", flush=True)
    print(markdown_table(pl.DataFrame([{"recipe": name} | figures for name, figures in measured.items()])))
    own, naive = measured.values()
    print(
        json.dumps(
            {
                "bits_per_character": round(own["bits_per_character"], 4),
                "naive_bits_per_character": round(naive["bits_per_character"], 4),
                "ratio": round(own["bits_per_character"] / naive["bits_per_character"], 4),
                "tokens_per_second": round(own["tokens_per_second"]),
            }
        )
    )


if __name__ == "__main__":
    main()
