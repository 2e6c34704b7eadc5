"""The pretraining payload: from packed sequences to a base checkpoint with its loss curve and held-out quality."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets import plots
from khmer_assets.pretraining import packing, perplexity
from khmer_assets.recipe import Pretraining
from resources.payload import PayloadRun


class Spec(BaseModel):
    """Folders of packed_dataset, tokenizer and training_mixture; the settings; how much held-out text is scored."""

    packed: Path
    tokenizer: Path
    mixture: Path
    settings: Pretraining
    seed: int
    max_documents: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write a transformers folder (float32) with its tokenizer and `training.json`; return quality by language."""
    import torch
    from transformers import AutoTokenizer

    from khmer_assets.pretraining import model as models
    from khmer_assets.pretraining.loop import Schedule, train

    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer)
    settings = spec.settings
    torch.manual_seed(spec.seed)
    model = models.starting_model(settings, tokenizer, spec.seed).to(models.device())
    sequences = packing.PackedSequences(
        packing.open_stream(spec.packed), settings.context_length, settings.batch_size, spec.seed
    )
    parameters = sum(p.numel() for p in model.parameters())
    run.log(f"{settings.architecture}: {parameters:,} parameters, {sequences.sequences:,} sequences")
    run.parameters(**settings.model_dump(), parameters=parameters, seed=spec.seed)

    def batch(step: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(sequences.batch(step)).to(model.device)
        return {"input_ids": ids, "labels": ids}

    schedule = Schedule(
        **settings.model_dump(
            include={"learning_rate", "warmup_ratio", "weight_decay", "steps", "checkpoint_every", "precision"}
        )
    )
    curve = train(model, batch, schedule, run)
    model.eval()
    quality = quality_by_language(model, tokenizer, spec.mixture, settings.context_length, spec.max_documents)
    model.save_pretrained(run.output)
    tokenizer.save_pretrained(run.output)
    (run.output / "training.json").write_text(json.dumps({"curve": curve, "quality": quality}))
    figures = {
        f"{measure}_{language}": q[measure]
        for language, q in quality.items()
        for measure in ("perplexity", "bits_per_character")
    }
    run.metrics(settings.steps, **figures)
    run.keep_model(run.output)
    return {"parameters": parameters, "loss_curve": plots.as_markdown(loss_plot(curve)), **figures}


def quality_by_language(
    model: Any, tokenizer: Any, mixture: Path, context_length: int, max_documents: int
) -> dict[str, dict[str, float]]:
    """`perplexity.held_out_quality` of a transformers model on the validation split, by language."""
    end = packing.end_of_text_id(tokenizer)
    score = perplexity.model_scorer(model)
    return {
        language: perplexity.held_out_quality(score, tokenizer, end, texts, context_length)
        for language, texts in validation_texts(mixture, max_documents).items()
    }


def validation_texts(mixture: Path, max_documents: int) -> dict[str, list[str]]:
    """At most `max_documents` texts a language of the mixture's validation split, in the mixture's order."""
    frame = pl.read_parquet(mixture / "data.parquet").filter(pl.col("split") == "validation")
    by_language = frame.partition_by("language", as_dict=True)
    return {
        str(language): by_language[(language,)]["text"].head(max_documents).to_list()
        for (language,) in sorted(by_language)
    }


def loss_plot(curve: list[dict[str, float]]) -> Any:
    """The loss a step, in nats a token."""
    figure = plots.new_figure()
    axes = figure.subplots()
    axes.plot([point["step"] for point in curve], [point["loss"] for point in curve], linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title="Training loss")
    axes.grid(alpha=0.3)
    return figure
