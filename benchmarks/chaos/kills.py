"""What a kill is, how it is done, and how long something may take to come back."""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from khmer_assets.recipe import SAMPLE_RECIPE, Recipe

GIVEN_UP_AFTER = 180.0  # seconds without recovery, which then counts as something lost
PROGRESS = "progress"  # what a training tells of its steps, beside its work folders
PROCESSES = multiprocessing.get_context("spawn")
STEPS, CHECKPOINT_EVERY = 150, 10  # of a training


@dataclass
class Kill:
    """What one kill did; `recovered` are the seconds until the step went on."""

    step: str
    victim: str
    half_written: int = 0
    lost_artifacts: int = 0
    lost_steps: int = 0
    failed_requests: int = 0
    recovered: float = 0.0


def waited(until: Callable[[], bool], seconds: float = GIVEN_UP_AFTER) -> float | None:
    """The seconds until the condition held, or None when it never did."""
    started = time.monotonic()
    while not until():
        if time.monotonic() - started > seconds:
            return None
        time.sleep(0.02)
    return time.monotonic() - started


def small_recipe() -> Recipe:
    """The sample's recipe with a model that trains in seconds."""
    recipe = Recipe.load(SAMPLE_RECIPE)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "layers": 2, "attention_heads": 4, "key_value_heads": 2}
    assert recipe.pretraining is not None and recipe.pretraining.decoder is not None
    schedule: dict[str, object] = {
        "decoder": recipe.pretraining.decoder.model_copy(update=sizes),
        "precision": "float32",
        "context_length": 128,
        "batch_size": 4,
        "steps": STEPS,
        "checkpoint_every": CHECKPOINT_EVERY,
    }
    return recipe.model_copy(update={"pretraining": recipe.pretraining.model_copy(update=schedule)})


def new_folder(folder: Path) -> Path:
    """A new folder there."""
    folder.mkdir(parents=True)
    return folder
