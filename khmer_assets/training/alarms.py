"""What in a training's curve somebody should look at, and when it must stop.

A curve has a point a step, as `loop.TrainingResult` says.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from khmer_assets.training.settings import TrainingSettings

EXPLODED_STEPS = 20
MEDIAN_OF = 200  # steps before those
EXPLODED = 2.0  # times that median
DRIFT = 0.5  # nats a token
CLIPPED = 0.05  # of the steps
HOT = 85.0  # °C; not far above it, makers let their accelerators slow down
IDLE = 50.0  # % of the time

Curve = Sequence[dict[str, float]]


def why_stop(curve: Curve, settings: TrainingSettings) -> str | None:
    """Why training cannot go on, and what to change: the last loss is no number, or each of the last
    `EXPLODED_STEPS` is more than twice (and `DRIFT` above) the median of the `MEDIAN_OF` steps before them."""
    change = f"lower learning_rate ({settings.learning_rate}) or raise warmup_ratio ({settings.warmup_ratio})"
    step, losses = len(curve), [point["loss"] for point in curve[-EXPLODED_STEPS - MEDIAN_OF :]]
    if losses[-1] != losses[-1]:
        return f"the loss of step {step} is not a number; {change}"
    former, latest = losses[:-EXPLODED_STEPS], losses[-EXPLODED_STEPS:]
    if len(former) < EXPLODED_STEPS:
        return None
    median = statistics.median(former)
    if min(latest) > max(EXPLODED * median, median + DRIFT):
        return (
            f"the loss has exploded: {median:.3f} before step {step - EXPLODED_STEPS}, {latest[-1]:.3f} now; {change}"
        )
    return None


def clipped_share(curve: Curve, settings: TrainingSettings) -> float:
    """Of the steps after the warm-up, the share whose gradients were longer than `max_gradient_norm`."""
    after = curve[round(settings.warmup_ratio * len(curve)) :]
    return sum(point["gradient_norm"] > settings.max_gradient_norm for point in after) / max(1, len(after))


def alarms(curve: Curve, settings: TrainingSettings, clipping_matters: bool) -> dict[str, str]:
    """Warnings on a whole curve, a text a name.

    Where Muon trains the matrices, clipping does not matter: its updates have the same size however long the gradient
    is, so that a clipped step only has a smaller share in the momentum.
    """
    found = {}
    tenth = max(1, len(curve) // 10)
    first, last = (statistics.fmean(point["loss"] for point in part) for part in (curve[:tenth], curve[-tenth:]))
    if len(curve) > 1 and last >= first:
        found["loss_does_not_fall"] = (
            f"the loss was {first:.3f} and is {last:.3f}; train longer or change learning_rate"
        )
    validation = [point["validation_loss"] for point in curve if "validation_loss" in point]
    if validation and validation[-1] > last + DRIFT:
        found["validation_drifts"] = (
            f"the validation loss is {validation[-1]:.3f}, the training loss {last:.3f}: the model learns by heart; "
            "take fewer epochs or steps, more text, or set patience"
        )
    clipped = clipped_share(curve, settings)
    if clipping_matters and clipped > CLIPPED:
        found["gradients_clipped"] = (
            f"{clipped:.0%} of the steps had gradients longer than max_gradient_norm ({settings.max_gradient_norm}); "
            f"lower learning_rate ({settings.learning_rate}) or raise it"
        )
    return found


def accelerator_alarms(figures: Mapping[str, float], settings: TrainingSettings) -> dict[str, str]:
    """Warnings on the `figures` of `TrainingResult`, a text a name. They are not of what was trained."""
    found = {}
    if (celsius := figures.get("hottest_celsius", 0.0)) >= HOT:
        found["gpu_is_hot"] = f"a GPU was at {celsius:.0f} °C, where it slows down; look at its cooling"
    if (load := figures.get("gpu_load", 100.0)) < IDLE:
        found["gpu_is_idle"] = (
            f"the GPU computed in {load:.0f}% of the time; raise micro_batch_size ({settings.micro_batch_size}), or "
            "take gradient_checkpointing away if the memory allows"
        )
    return found


def alarmed(folder: Path) -> dict[str, Any]:
    """The fields of a check on a training's folder: whether its `training.json` has no alarm, and what they say."""
    found: dict[str, str] = json.loads((folder / "training.json").read_text()).get("alarms", {})
    return {"passed": not found, "description": "; ".join(found.values()) or None, "metadata": dict(found)}
