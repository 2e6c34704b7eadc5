"""How the tests of this stage calibrate."""

import pytest


@pytest.fixture
def calibration(model, mixture) -> dict:
    return {"model": model, "mixture": mixture, "samples": 8, "length": 64, "seed": 1}
