"""A real S3 server on this machine, for what keeps its files in an object store."""

from collections.abc import Iterator

import httpx
import pytest
import s3fs
from moto.server import ThreadedMotoServer


@pytest.fixture
def s3(monkeypatch) -> Iterator[s3fs.S3FileSystem]:
    """An S3 with the empty bucket `factory`; this process and its children find it by their environment."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem(use_listings_cache=False)
    filesystem.mkdir("factory")
    yield filesystem
    httpx.post(f"http://{host}:{port}/moto-api/reset")  # its buckets outlive the server
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()
