"""The tiny model and mixture that several stages' tests share; no test writes into them."""

from pathlib import Path

import pytest

from tests.tiny_model import save_tiny_mixture, save_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def mixture(tmp_path_factory) -> Path:
    return save_tiny_mixture(tmp_path_factory.mktemp("mixture"))
