"""The pretraining payload: from packed sequences to a base checkpoint with its loss curve and held-out quality."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from khmer_assets.foundation import plots
from khmer_assets.foundation.settings import PositiveFloat, PositiveInt, Ratio
from khmer_assets.pretraining import packing
from khmer_assets.pretraining.decoder import Decoder, starting_model
from khmer_assets.training import held_out
from khmer_assets.training.models import Precision
from resources.payload import PayloadRun


class Pretraining(Decoder):
    """The decoder and its training. A step is `batch_size` sequences of `context_length` tokens."""

    precision: Precision = "auto"
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_ratio: Ratio
    weight_decay: Annotated[float, Field(ge=0)]
    steps: PositiveInt
    checkpoint_every: PositiveInt


class Spec(BaseModel):
    """Folders of packed_dataset, tokenizer and training_mixture; the settings; how much held-out text is scored."""

    packed: Path
    tokenizer: Path
    mixture: Path
    settings: Pretraining
    seed: int
    max_documents: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write a transformers folder (float32) with its tokenizer and `training.json`; return quality by language.

    A model that cannot be scored is kept, without quality and with the reason in `not_scored`.
    """
    import torch
    from transformers import AutoTokenizer

    from khmer_assets.training import models
    from khmer_assets.training.loop import Schedule, loss_plot, train

    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer)
    settings = spec.settings
    torch.manual_seed(spec.seed)
    model = starting_model(settings, tokenizer, spec.seed).to(models.device())
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
    model.save_pretrained(run.output)
    tokenizer.save_pretrained(run.output)
    run.log("scoring held-out text")
    quality, not_scored = held_out.measured(
        lambda: held_out.quality_by_language(
            held_out.model_scorer(model), tokenizer, spec.mixture, settings.context_length, spec.max_documents
        )
    )
    training = {"curve": curve, "quality": quality or {}}
    (run.output / "training.json").write_text(json.dumps(training | ({"not_scored": not_scored} if not_scored else {})))
    figures = {
        f"{measure}_{language}": q[measure]
        for language, q in (quality or {}).items()
        for measure in ("perplexity", "bits_per_character")
    }
    run.metrics(settings.steps, **figures)
    run.keep_model(run.output)
    return {"parameters": parameters, "loss_curve": plots.as_markdown(loss_plot(curve)), **figures}
