"""Several trainings of one adapter side by side, and the payload that compares them and keeps the best."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ValidationError, model_validator

from khmer_assets.finetuning.sft import Finetuning
from khmer_assets.foundation import plots
from khmer_assets.foundation.files import link_file
from khmer_assets.foundation.settings import Name, PlainValues, mistakes
from khmer_assets.foundation.tables import markdown_table
from resources.payload import PayloadRun, Refusal


class FinetuningRuns(Finetuning):
    """`runs`: by name, in what settings each of several trainings differs from the rest, as `small: {rank: 8}`. The
    one with the lowest validation loss is merged. Without them there is one training."""

    runs: dict[Name, PlainValues] = {}

    @model_validator(mode="after")
    def _runs_are_settings(self) -> "FinetuningRuns":
        for name in self.runs:
            try:
                self.of(name)
            except ValidationError as error:
                raise ValueError("; ".join(mistakes(error, f"runs.{name}.", f"runs.{name}"))) from None
        return self

    @property
    def replays(self) -> bool:
        """Whether text is replayed in any of them."""
        return any(self.of(name).replay for name in self.runs or [None])

    def of(self, name: str | None) -> Finetuning:
        """The settings of one run; of the only one, where there are no runs."""
        common = self.model_dump(exclude={"runs"})
        return Finetuning.model_validate({**common, **(self.runs[name] if name else {})})


class Spec(BaseModel):
    """The folders of the adapters, by the name of their run."""

    adapters: dict[str, Path]


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the adapter with the lowest validation loss, and `runs.json` with the figures of all runs."""
    trainings = {name: json.loads((folder / "training.json").read_text()) for name, folder in spec.adapters.items()}
    losses = {name: training["validation_loss"] for name, training in trainings.items()}  # None: not scored
    scored = {name: float(loss) for name, loss in losses.items() if loss is not None and math.isfinite(loss)}
    if not scored:
        raise Refusal("no run has a validation loss to choose by; raise instructions.split.validation")
    best = min(scored, key=scored.__getitem__)
    rows = [
        {
            "run": name,
            "rank": json.loads((folder / "adapter_config.json").read_text())["r"],
            "steps": len(trainings[name]["curve"]),
            "train loss": trainings[name]["curve"][-1]["loss"],
            "validation loss": trainings[name]["validation_loss"],
            "best": "✓" if name == best else "",
        }
        for name, folder in spec.adapters.items()
    ]
    for file in spec.adapters[best].iterdir():
        link_file(file, run.output / file.name)
    (run.output / "runs.json").write_text(json.dumps({"best": best, "runs": rows}, indent=1))
    return {
        "best_run": best,
        "validation_loss": scored[best],
        "runs": markdown_table(pl.DataFrame(rows)),
        "loss_curves": plots.as_markdown(_curves(trainings)),
    }


def _curves(trainings: dict[str, Any]) -> Any:
    figure = plots.new_figure()
    axes = figure.subplots()
    for name, training in trainings.items():
        curve = training["curve"]
        axes.plot([point["step"] for point in curve], [point["loss"] for point in curve], linewidth=1, label=name)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title="Training loss by run")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
