"""The tiny model and mixture that several stages' tests share; no test writes into them."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from khmer_assets.foundation.home import HOME_VARIABLE
from tests.tiny_model import save_tiny_mixture, save_tiny_model

# How long an example takes is the machine's, not the test's; the examples of a property test share its fixtures.
SUPPRESSED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("factory", deadline=None, suppress_health_check=SUPPRESSED)
settings.load_profile("factory")


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def mixture(tmp_path_factory) -> Path:
    return save_tiny_mixture(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory) -> Path:
    """No test keeps state in the project's own folder."""
    folder = tmp_path_factory.mktemp("home")
    os.environ[HOME_VARIABLE] = str(folder)
    return folder
