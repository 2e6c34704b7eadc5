"""The tiny model and mixture that several stages' tests share; no test writes into them."""

import os
from pathlib import Path

import pytest

from khmer_assets.foundation.home import HOME_VARIABLE
from tests.tiny_model import save_tiny_mixture, save_tiny_model


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
