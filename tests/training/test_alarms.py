"""What is told of a training's curve, and what ends it."""

import re

import pytest

from khmer_assets.training.alarms import accelerator_alarms, alarms, why_stop
from khmer_assets.training.settings import TrainingSettings

SETTINGS = TrainingSettings(learning_rate=0.01, warmup_ratio=0.1, batch_size=2, checkpoint_every=10)


def curve(losses, norm=0.5, validation=None):
    points = [{"step": i + 1, "loss": loss, "gradient_norm": norm} for i, loss in enumerate(losses)]
    if validation is not None:
        points[-1]["validation_loss"] = validation
    return points


FALLING = [5 - 0.02 * step for step in range(100)]


def test_a_curve_that_falls_is_left_alone():
    assert why_stop(curve(FALLING), SETTINGS) is None
    assert alarms(curve(FALLING, validation=3.2), SETTINGS, clipping_matters=True) == {}


def test_a_loss_that_explodes_ends_the_training_after_20_steps():
    assert why_stop(curve([*FALLING, *[9.0] * 19]), SETTINGS) is None
    reason = why_stop(curve([*FALLING, *[9.0] * 20]), SETTINGS)
    assert reason == (
        "the loss has exploded: 4.010 before step 100, 9.000 now; lower learning_rate (0.01) or raise warmup_ratio "
        "(0.1)"
    )


def test_a_loss_near_zero_may_double():
    assert why_stop(curve([*[0.01] * 100, *[0.1] * 20]), SETTINGS) is None


@pytest.mark.parametrize(
    ("points", "name", "told"),
    [
        (curve(FALLING[::-1]), "loss_does_not_fall", "the loss was 3.110 and is 4.910"),
        (curve(FALLING, validation=4.0), "validation_drifts", "is 4.000, the training loss 3.110"),
        (curve(FALLING, norm=1.5), "gradients_clipped", r"100% .* max_gradient_norm \(1.0\); lower learning_rate"),
    ],
)
def test_what_somebody_should_look_at_is_told(points, name, told):
    found = alarms(points, SETTINGS, clipping_matters=True)
    assert list(found) == [name]
    assert re.search(told, found[name])


def test_clipping_is_no_alarm_in_the_warm_up_nor_for_muon():
    points = curve(FALLING[:10], norm=9.0) + curve(FALLING[10:])
    assert alarms(points, SETTINGS, clipping_matters=True) == {}
    assert alarms(curve(FALLING, norm=9.0), SETTINGS, clipping_matters=False) == {}


def test_an_accelerator_that_is_hot_or_waits_is_told():
    assert (
        accelerator_alarms({}, SETTINGS) == accelerator_alarms({"hottest_celsius": 70, "gpu_load": 95}, SETTINGS) == {}
    )
    found = accelerator_alarms({"hottest_celsius": 88.0, "gpu_load": 31.0}, SETTINGS)
    assert list(found) == ["gpu_is_hot", "gpu_is_idle"]
    assert "88 °C" in found["gpu_is_hot"] and "31% of the time; raise micro_batch_size" in found["gpu_is_idle"]
