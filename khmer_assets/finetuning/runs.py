"""Several trainings of one adapter side by side, and the payload that compares them and keeps the best."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ValidationError, model_validator

from khmer_assets.base_model.bring_in import Base
from khmer_assets.finetuning.sft import Finetuning
from khmer_assets.foundation import plots
from khmer_assets.foundation.files import link_file
from khmer_assets.foundation.settings import Name, PlainValues, mistakes
from khmer_assets.foundation.tables import markdown_table
from resources.payload import PayloadRun, Refusal

RUNS = "runs.json"


class FinetuningRuns(Finetuning):
    """`runs`: by name, in what settings each of several trainings differs from the rest, as `small: {rank: 8}`. The
    one that takes the fewest bits a character for the validation answers is merged (a loss a token cannot be compared
    between tokenizers). Without them there is one training. `bases`: by a run's name, the open model that it begins
    with, where that is not the recipe's."""

    runs: dict[Name, PlainValues] = {}
    bases: dict[Name, Base] = {}

    @model_validator(mode="after")
    def _runs_are_settings(self) -> "FinetuningRuns":
        for name in self.runs:
            try:
                self.of(name)
            except ValidationError as error:
                raise ValueError("; ".join(mistakes(error, f"runs.{name}.", f"runs.{name}"))) from None
        if unknown := self.bases.keys() - self.runs.keys():
            raise ValueError(
                f"bases: there is no run {min(unknown)!r}; give it a line in runs, {{}} if it is as the rest"
            )
        return self

    @property
    def replays(self) -> bool:
        """Whether text is replayed in any of them."""
        return any(self.of(name).replay for name in self.runs or [None])

    def of(self, name: str | None) -> Finetuning:
        """The settings of one run; of the only one, where there are no runs."""
        common = self.model_dump(exclude={"runs", "bases"})
        return Finetuning.model_validate({**common, **(self.runs[name] if name else {})})


def base_asset(name: str) -> str:
    """The asset that holds the base of a run that has its own."""
    return f"base_model_{name}"


def base_of(adapter: Path, base: Path, others: Mapping[str, Path]) -> Path:
    """What the best adapter was trained on: `base`, or that of `others`, by asset, which its run has of its own."""
    file = adapter / RUNS
    return others.get(base_asset(json.loads(file.read_text())["best"]), base) if file.exists() else base


class Spec(BaseModel):
    """The folders of the adapters, by the name of their run."""

    adapters: dict[str, Path]


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the adapter with the fewest validation bits a character, and `runs.json` with the figures of all runs."""
    trainings = {name: json.loads((folder / "training.json").read_text()) for name, folder in spec.adapters.items()}
    bits = {name: training["validation_bits_per_character"] for name, training in trainings.items()}  # None: not scored
    scored = {name: float(value) for name, value in bits.items() if value is not None and math.isfinite(value)}
    if not scored:
        raise Refusal("no run has a validation loss to choose by; raise instructions.split.validation")
    best = min(scored, key=scored.__getitem__)
    rows = [
        {
            "run": name,
            "base": trainings[name]["model"],
            "rank": json.loads((folder / "adapter_config.json").read_text())["r"],
            "steps": len(trainings[name]["curve"]),
            "train loss": trainings[name]["curve"][-1]["loss"],
            "validation loss": trainings[name]["validation_loss"],
            "bits a character": bits[name],
            "best": "✓" if name == best else "",
        }
        for name, folder in spec.adapters.items()
    ]
    for file in spec.adapters[best].iterdir():
        link_file(file, run.output / file.name)
    (run.output / RUNS).write_text(json.dumps({"best": best, "runs": rows}, indent=1))
    return {
        "best_run": best,
        "validation_bits_per_character": scored[best],
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
