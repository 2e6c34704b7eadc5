"""The gateway's settings: what no gateway could start with is told before one does."""

import resource

import pytest

from khmer_assets.server.gateway_settings import GatewaySettings, descriptors_missing, tls_context
from khmer_assets.server.state import ModelServerError
from tests.server.test_supervisor import certificate


def test_more_requests_than_files_may_be_open_are_told_with_what_to_do():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert descriptors_missing(GatewaySettings(max_requests=1)) is None
    if hard != resource.RLIM_INFINITY:
        assert "lower serving.gateway.max_requests" in str(descriptors_missing(GatewaySettings(max_requests=hard)))


def test_a_certificate_and_the_key_of_another_are_refused(tmp_path):
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
    one, another = certificate(tmp_path / "one"), certificate(tmp_path / "another")
    assert tls_context(GatewaySettings.model_validate(one)) is not None
    for mixed in ({**one, "tls_key": another["tls_key"]}, {**one, "tls_key": "/nowhere"}):
        with pytest.raises(ModelServerError, match="expected a certificate and its key as PEM files"):
            tls_context(GatewaySettings.model_validate(mixed))
