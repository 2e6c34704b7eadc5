"""`khmer plan`: what the recipe's trainings take, before any of them has begun."""

import argparse
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from khmer_assets.base_model.bring_in import Base
from khmer_assets.foundation.home import home
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.instructions.chat_files import read_all, read_chats
from khmer_assets.instructions.chat_sources import Instructions
from khmer_assets.khmer.normalization import Normalization
from khmer_assets.recipe import Recipe
from khmer_assets.training.models import BASE_RECORD
from resources.storage import MissingArtifact, Store, store_root

HELP = "tell parameters, memory, steps, tokens, hours and disk of the recipe's trainings"

# Shapes as the makers' config.json state them, of models that cannot be asked before they are brought in.
QWEN2_5 = {"model_type": "qwen2", "vocab_size": 151936, "tie_word_embeddings": True}
LLAMA_3_2 = {"model_type": "llama", "vocab_size": 128256, "tie_word_embeddings": True, "head_dim": 128}
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
KNOWN_SHAPES = {
    "Qwen/Qwen2.5-0.5B": QWEN2_5 | dict(zip(SIZES, (896, 4864, 24, 14, 2), strict=True)),
    "Qwen/Qwen2.5-1.5B": QWEN2_5 | dict(zip(SIZES, (1536, 8960, 28, 12, 2), strict=True)),
    "Qwen/Qwen2.5-3B": QWEN2_5 | dict(zip(SIZES, (2048, 11008, 36, 16, 2), strict=True)),
    "meta-llama/Llama-3.2-3B": LLAMA_3_2 | dict(zip(SIZES, (3072, 8192, 28, 24, 8), strict=True)),
}
H100 = "one H100"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def main(arguments: argparse.Namespace) -> int:
    """Print a line for each training, and what is left out of the graph."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # which tells of kernels that no plan needs
    from khmer_assets.training.estimate import measured_flops
    from khmer_assets.training.hardware import PEAK_TFLOPS, peak_flops

    recipe = Recipe.current()
    here = peak_flops() or measured_flops()
    rates = {"this machine": here, H100: 1e12 * PEAK_TFLOPS["H100"]}
    rows = []
    for name, found in _estimates(recipe).items():
        rows.append(
            {
                "training": name,
                "parameters": f"{found.parameters / 1e6:,.1f} M",
                "trained": f"{found.trained / 1e6:,.1f} M",
                "steps": f"{found.steps:,}",
                "tokens": f"{found.tokens / 1e6:,.1f} M",
                "memory": f"{found.memory / 1e9:,.1f} GB",
                "disk": f"{found.disk / 1e9:,.2f} GB",
                **{f"time on {where}": _duration(found.hours(rate)) for where, rate in rates.items()},
            }
        )
    print(f"{recipe.name}: {', '.join(recipe.variants)} are made, {recipe.release.variant} is released")
    for variant, reason in recipe.left_out.items():
        print(f"  left out: {variant}, for {reason}")
    print(f"\n{markdown_table(pl.DataFrame(rows))}\n")
    print("Memory is that of one process that holds all; tokens and times are the most that it can be, as if each")
    print(f"sequence filled its context. {shutil.disk_usage(home().parent).free / 1e9:,.0f} GB of disk are free here.")
    return 0


def _duration(hours: float) -> str:
    if hours > 72:
        return f"{hours / 24:,.0f} days"
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:,.1f} minutes"


def _estimates(recipe: Recipe) -> dict[str, Any]:
    """An `Estimate` a training, by its name."""
    from khmer_assets.training import estimate as training

    found: dict[str, Any] = {}
    model = _shapes(recipe, recipe.base)
    if model is None:
        return found
    if (pretraining := recipe.pretraining) is not None:
        found["pretraining"] = training.estimate(
            model, pretraining, pretraining.context_length, pretraining.steps, training.FLOAT32
        )
    runs = {} if recipe.finetuning is None else {name: recipe.finetuning.of(name) for name in recipe.finetuning.runs}
    if recipe.finetuning is not None and not runs:
        runs = {"finetuning": recipe.finetuning.of(None)}
    chats = _training_chats(recipe)
    for name, settings in runs.items():
        steps = max(1, chats // settings.batch_size) * settings.epochs
        bases = recipe.finetuning.bases if recipe.finetuning else {}
        model = _shapes(recipe, bases.get(name, recipe.base))
        if model is not None:
            model = _with_adapter(model, settings)
            found[name] = training.estimate(model, settings, recipe.context_length, steps, _frozen_bytes(settings))
    return found


def _frozen_bytes(settings: Any) -> float:
    from khmer_assets.training import estimate as training

    if settings.quantization == "nf4":
        return training.NF4
    return training.FLOAT32 if settings.precision == "float32" else training.BFLOAT16


def _shapes(recipe: Recipe, base: Base | None) -> Any:
    """The recipe's model, or `base`, on `meta`; None, and it is told, while nobody here knows its shape."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from khmer_assets.pretraining.decoder import config_of

    if recipe.tokenizer is not None:
        assert recipe.pretraining is not None and recipe.pretraining.decoder is not None  # else it was refused
        config = config_of(
            recipe.pretraining.decoder, recipe.pretraining.context_length, recipe.tokenizer.vocabulary_size
        )
    else:
        assert base is not None
        values = _config_of_base(base.model)
        if values is None:
            print(f"The shape of {base.model} is not known before base_model is materialized.")
            return None
        config = AutoConfig.for_model(**values)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _config_of_base(model: str) -> dict[str, Any] | None:
    try:
        folder = Store(store_root(home()), home() / "cache").current("base_model")
        if json.loads((folder / BASE_RECORD).read_text())["model"] == model:
            return dict(json.loads((folder / "config.json").read_text()))
    except MissingArtifact:
        pass
    if (Path(model) / "config.json").is_file():
        return dict(json.loads((Path(model) / "config.json").read_text()))
    return KNOWN_SHAPES.get(model.removesuffix("-Instruct"))


def _with_adapter(model: Any, settings: Any) -> Any:
    import torch

    from khmer_assets.finetuning import lora

    with torch.device("meta"):
        return lora.adapted(model, settings, None)


def _training_chats(recipe: Recipe) -> int:
    """How many chats are trained on: those of chat_dataset, else as many as the files have lines and are composed."""
    try:
        chats = Store(store_root(home()), home() / "cache").current("chat_dataset")
        return int(pl.scan_parquet(chats / "data.parquet").filter(split="train").select(pl.len()).collect().item())
    except MissingArtifact:
        return int(_chats(recipe.instructions, recipe.normalization) * recipe.instructions.split.train)


def _chats(instructions: Instructions, normalization: Normalization) -> int:
    """The most chats that the recipe's chat sources give, before any is set aside."""
    count = instructions.generated_chats or 0
    count += sum(_rows(read_chats(file, "", normalization)) for file in instructions.files)
    for source in instructions.sources:
        match source.kind:
            case "embedded":
                count += source.settings.generated_chats
            case "chat_files" | "translated":
                count += _rows(read_all(source.settings, "", normalization))
            case "tutor_tasks":
                count += source.settings.count
            case "questions_and_answers":
                count += (len(source.settings.topics) + (source.settings.documents or 0)) * source.settings.each
            case "dialogues":
                count += len(source.settings.topics) + (source.settings.documents or 0)
    return count


def _rows(chats: pl.LazyFrame) -> int:
    return int(chats.select(pl.len()).collect().item())
