"""Where the server may be reached: from this machine, or elsewhere with encryption."""

import json
import shutil

import pytest
from pydantic import ValidationError

from khmer_assets.release.deployment import Deployment, model_server, served_endpoint

TLS = {"tls_certificate": "/etc/khmer/certificate.pem", "tls_key": "/etc/khmer/key.pem"}


def deployment(**settings) -> Deployment:
    return Deployment.model_validate({"max_model_length": 64, "question": "សួស្តី?", **settings})


def test_keys_do_not_travel_in_the_clear(tmp_path):
    assert deployment().host == "127.0.0.1"
    assert deployment(host="::1").host == "::1"
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(ValidationError, match=r"in the clear; set gateway\.tls_certificate .*behind_proxy: true"):
            deployment(host=host)
        deployment(host=host, behind_proxy=True)
        server = model_server(deployment(host=host, gateway=TLS), [], tmp_path)
        assert server.host == host
        assert server.address.startswith("https://")


def test_a_host_is_an_address():
    with pytest.raises(ValidationError, match="does not appear to be an IPv4 or IPv6 address"):
        deployment(host="khmer.example.org")


def test_two_that_deploy_the_same_release_at_once_each_tell_so_in_a_folder_of_their_own(tmp_path):
    (tmp_path / "server").mkdir()
    server = model_server(deployment(), [], tmp_path)
    first, second = (served_endpoint(server, "a" * 16, ("khmer",)) for _ in range(2))
    shutil.rmtree(first)  # as the I/O manager does once it is committed
    assert json.loads((second / "endpoint.json").read_text())["digest"] == "a" * 16
