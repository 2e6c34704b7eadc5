"""Confidence is scaled so that it is the share of what is right; judged on items that were not fitted on."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.evaluation import calibration
from khmer_assets.evaluation.calibration import FEWEST, Record, calibrate, confidence, reliability


def choices(count: int, sharpness: float, seed: int = 1) -> list[Record]:
    """Choices whose likelihoods are `sharpness` times what their chances are."""
    generator, found = random.Random(seed), []
    for _ in range(count):
        scores = [generator.gauss(0, 1.5) for _ in range(4)]
        chances = [math.exp(score) for score in scores]
        right = generator.choices(range(4), chances)[0]
        found.append(Record([sharpness * score for score in scores], right))
    return found


def answers(count: int, seed: int = 1) -> list[Record]:
    """Answers that are right less often than the mean likelihood of their tokens tells."""
    generator, found = random.Random(seed), []
    for _ in range(count):
        logit = generator.gauss(1, 1.5)
        right = generator.random() < 1 / (1 + math.exp(-(0.8 * logit - 1)))
        found.append(Record([math.log(1 / (1 + math.exp(-logit)))], 0 if right else -1))
    return found


def test_the_temperature_that_was_put_in_is_found():
    figures = calibrate(choices(800, sharpness=3), [])["choices"]
    assert figures["parameters"]["temperature"] == pytest.approx(3, rel=0.15)
    assert figures["before"]["error"] > 0.15 > 0.06 > figures["temperature"]["error"]


def test_slope_and_offset_of_answers_are_found():
    figures = calibrate([], answers(1500))["answers"]
    assert figures["parameters"]["platt_slope"] == pytest.approx(0.8, abs=0.15)
    assert figures["parameters"]["platt_offset"] == pytest.approx(-1, abs=0.2)
    assert figures["best"] == "platt"
    assert figures["platt"]["error"] < 0.05 < figures["before"]["error"]


def test_both_kinds_are_told_together_with_an_interval():
    figures = calibrate(choices(300, 3), answers(300))["all"]
    assert figures["items"] == 600
    assert figures["after"]["low"] < figures["after"]["error"] < figures["after"]["high"]
    assert figures["after"]["error"] < figures["before"]["error"]


def test_what_says_nothing_gets_the_confidence_of_chance():
    figures = calibrate([Record([0.0, -0.001 * n, 0, 0], n % 4) for n in range(200)], [])["choices"]
    told = figures[figures["best"]]
    assert all(one["confidence"] == pytest.approx(0.25, abs=0.05) for one in told["bins"])
    assert told["low"] == 0


def test_too_few_records_are_left_out():
    assert calibrate(choices(FEWEST - 1, 1), []) == {}


def test_records_of_a_broken_model_are_left_out():
    assert calibrate([Record([float("nan")] * 4, 0)] * 50, []) == {}


def test_all_right_and_all_wrong_do_no_harm():
    for right in (0, -1):
        figures = calibrate([], [Record([-0.1 * n], right) for n in range(40)])["answers"]
        assert figures[figures["best"]]["error"] < 0.05


def test_the_error_is_the_mean_gap_between_confidence_and_accuracy():
    import numpy as np

    told = reliability(np.array([0.95, 0.95, 0.35, 0.35]), np.array([1.0, 0.0, 0.0, 0.0]))
    assert told["plain"] == pytest.approx((2 * 0.45 + 2 * 0.35) / 4)
    assert told["error"] < told["plain"]


@pytest.mark.parametrize(("count", "off"), [(140, 0.0), (466, 0.0), (466, 0.08)])
def test_the_interval_holds_the_true_error(count, off):
    import numpy as np

    generator, errors, held = np.random.default_rng(3), [], 0
    for _ in range(20):
        confidences = 1 / (1 + np.exp(-generator.normal(1.3, 1.5, count)))
        chances = (confidences - off).clip(0, 1)
        told = reliability(confidences, (generator.random(count) < chances).astype(float))
        true = float(np.abs(confidences - chances).mean())
        held += told["low"] <= true <= told["high"]
        errors.append(told["error"] - true)
    assert held >= 20 * 0.8  # an interval of the plain error, which is never 0, holds none of a true 0
    assert np.mean(errors) < 0.055 * (140 / count) ** 0.5  # chance opens gaps of twice as much


@given(
    scores=st.lists(st.floats(-50, 0), min_size=1, max_size=7),
    best=st.sampled_from(["temperature", "platt"]),
    temperature=st.floats(0.02, 256),
    slope=st.floats(0, 100),
    offset=st.floats(-50, 50),
)
def test_a_router_gets_the_confidence_that_was_judged(scores, best, temperature, slope, offset):
    import numpy as np

    parameters = {"temperature": temperature, "platt_slope": slope, "platt_offset": offset}
    row = np.array([scores])
    judged = calibration._confidences(row, temperature)
    if best == "platt":
        judged = calibration._platt_confidences(row, (slope, offset))
    assert confidence({"best": best, "parameters": parameters}, scores) == pytest.approx(float(judged[0]), abs=1e-6)


def test_broken_scores_have_the_least_confidence():
    figures = {"best": "platt", "parameters": {"temperature": 1.0, "platt_slope": 1.0, "platt_offset": 0.0}}
    assert (
        confidence(figures, [float("nan")]) == confidence(figures, []) == confidence(figures, [0.0, float("nan")]) == 0
    )
