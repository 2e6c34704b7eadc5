"""The pretraining payload: from packed sequences to a base checkpoint with its loss curve and held-out quality."""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from khmer_assets.extension.merges import FIGURES as EXTENSION
from khmer_assets.foundation import plots
from khmer_assets.foundation.settings import PositiveInt
from khmer_assets.pretraining import packing
from khmer_assets.pretraining.continued import Continued, ContinuedOptimizer
from khmer_assets.pretraining.decoder import Decoder, new_model
from khmer_assets.training import held_out
from khmer_assets.training.models import BASE_RECORD, load_model
from khmer_assets.training.settings import TrainingSettings
from resources.payload import PayloadRun, Refusal

DISTRIBUTED = True


class Pretraining(TrainingSettings):
    """A new `decoder`, or none where an open model is trained on, and `steps` steps of its training, on sequences of
    `context_length` tokens. `pilot`: a share of the steps that is trained by itself first; the long training begins
    only when the pilot has learned. `continued`: how an open model keeps what it knows while it learns Khmer."""

    decoder: Decoder | None = None
    context_length: Annotated[int, Field(ge=16)]
    steps: PositiveInt
    pilot: Annotated[float, Field(gt=0, lt=1)] | None = None
    continued: Continued | None = None


class Spec(BaseModel):
    """Folders of packed_dataset, tokenizer and training_mixture; the settings; how much held-out text is scored.

    `base` is the folder of the model that is trained on, None for the settings' new decoder.
    """

    base: Path | None = None
    packed: Path
    tokenizer: Path
    mixture: Path
    settings: Pretraining
    seed: int
    max_documents: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write a transformers folder (float32) with its tokenizer and `training.json`; return quality by language.

    What is known of the base (`base.json`) goes along with what is made of it.

    A model that cannot be scored is kept, without quality and with the reason in `not_scored`.
    """
    import torch
    from transformers import AutoTokenizer

    from khmer_assets.training import engines, models
    from khmer_assets.training.loop import Schedule, loss_plot, train

    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer)
    settings = spec.settings
    torch.manual_seed(spec.seed)
    model = starting_model(spec, tokenizer).to(models.device())
    sequences = packing.PackedSequences(
        packing.open_stream(spec.packed), settings.context_length, settings.batch_size, spec.seed
    )
    parameters = sum(p.numel() for p in model.parameters())
    run.log(f"{model.config.model_type}: {parameters:,} parameters, {sequences.sequences:,} sequences")
    if settings.evaluate_every and not held_out.validation_texts(spec.mixture, 1):
        raise Refusal(
            f"evaluate_every is {settings.evaluate_every} and the mixture has no validation text; raise "
            "mixture.validation_ratio, or set evaluate_every to null"
        )
    run.parameters(**settings.model_dump(exclude={"decoder"}), parameters=parameters, seed=spec.seed)

    size = engines.micro_batch_size(settings)
    models.choose_attention(model, size, settings.context_length, settings.precision)

    def batch(step: int) -> list[dict[str, torch.Tensor]]:
        ids = torch.from_numpy(sequences.batch(step))
        return [{"input_ids": part, "labels": part} for part in torch.split(ids, size)]

    def evaluate(rank: int, count: int) -> tuple[float, int]:
        return held_out.loss_of(quality(rank, count))

    def quality(rank: int = 0, count: int = 1) -> dict[str, dict[str, float]]:
        score, length = held_out.model_scorer(model), settings.context_length
        share = slice(rank, None, count)
        return held_out.quality_by_language(score, tokenizer, spec.mixture, length, spec.max_documents, share)

    optimizer = continued_optimizer(model, spec)
    result = train(model, batch, Schedule(settings, settings.steps), run, evaluate, optimizer)
    if optimizer is not None:
        optimizer.finish()
    if not run.leads:
        return {}
    model.eval()
    model.save_pretrained(run.output)
    tokenizer.save_pretrained(run.output)
    for record in (BASE_RECORD, EXTENSION):
        if spec.base and (spec.base / record).exists():
            shutil.copy(spec.base / record, run.output)
    plot = plots.as_markdown(loss_plot(result.curve))
    run.log("scoring held-out text")
    scored, not_scored = held_out.measured(quality)
    training = {
        "curve": result.curve,
        "best_step": result.best_step,
        "alarms": result.alarms,
        "quality": scored or {},
    }
    (run.output / "training.json").write_text(json.dumps(training | ({"not_scored": not_scored} if not_scored else {})))
    figures = {
        f"{measure}_{language}": q[measure]
        for language, q in (scored or {}).items()
        for measure in ("perplexity", "bits_per_character")
    }
    run.metrics({settings.steps: figures})
    run.keep_model(run.output)
    return {"parameters": parameters, "loss_curve": plot, **result.figures, **figures}


def continued_optimizer(model: Any, spec: Spec) -> ContinuedOptimizer | None:
    """What trains an open model that is to keep what it knows; None where the settings do not ask for it.

    New rows begin where `extension.json`, beside the base, says.
    """
    settings = spec.settings
    if settings.continued is None or spec.base is None:
        return None
    record = spec.base / EXTENSION
    rows = model.get_input_embeddings().weight.shape[0]
    first = json.loads(record.read_text())["first_new_token"] if record.exists() else rows
    return ContinuedOptimizer(model, settings.continued, first, settings.steps)


def starting_model(spec: Spec, tokenizer: Any) -> Any:
    """The settings' new decoder, or the base. Raises `Refusal` when a base cannot be trained on as it is set."""
    settings = spec.settings
    if spec.base is None:
        if settings.decoder is None:
            raise Refusal("there is nothing to train; set pretraining.decoder, or base to begin with an open model")
        return new_model(settings.decoder, settings.context_length, tokenizer, spec.seed)
    try:
        model = load_model(spec.base)
    except (OSError, ValueError) as error:
        raise Refusal(f"the model in {spec.base} cannot be loaded: {error}") from None
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise Refusal(
            f"the tokenizer in {spec.tokenizer} has {len(tokenizer)} tokens and the model in {spec.base} {rows} "
            f"embeddings; expected a tokenizer that belongs to the model"
        )
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and settings.context_length > longest:
        raise Refusal(
            f"pretraining.context_length ({settings.context_length}) is above the {longest} tokens that the base "
            f"was made for; lower it"
        )
    return model
