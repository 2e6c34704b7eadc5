"""The supervisor: a killed gateway comes back and nobody is refused meanwhile, also over TLS; starts slow down."""

import os
import socket
import subprocess
import sys
import time

import httpx
import psutil
import pytest

from khmer_assets.foundation.home import PROJECT
from khmer_assets.server.state import ModelVersion, ServerState
from khmer_assets.server.supervisor import Backoff
from khmer_assets.server.vllm import VLLM_PYTHON_VARIABLE

RELEASE = ModelVersion(digest="a" * 16, max_model_length=64)


def certificate(folder) -> dict[str, str]:
    files = {"tls_certificate": str(folder / "certificate.pem"), "tls_key": str(folder / "key.pem")}
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command += ["-out", files["tls_certificate"], "-keyout", files["tls_key"]]
    subprocess.run(command, check=True, capture_output=True)
    return files


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_users_of_a_killed_gateway_wait_and_are_not_refused(tmp_path, scheme):
    (tmp_path / "server").mkdir()
    settings = certificate(tmp_path) if scheme == "https" else {}
    ServerState(release=RELEASE, gateway=settings).write(tmp_path / "server")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "khmer_assets.server.supervisor", str(tmp_path), str(port)]
    command = ["bash", "-c", 'trap "" TERM; exec "$@"', "bash", *command]  # a parent may leave SIGTERM ignored
    supervisor = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, VLLM_PYTHON_VARIABLE: "/nowhere"})
    client = httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", trust_env=False, verify=False, timeout=30)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                client.get("/health")
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        (gateway,) = psutil.Process(supervisor.pid).children()
        gateway.kill()
        gateway.wait()
        answer = httpx.get(f"{client.base_url}/v1/models", trust_env=False, verify=False, timeout=30)
        assert answer.status_code == 401
        assert psutil.Process(supervisor.pid).children() != [gateway]
    finally:
        for process in [supervisor, *psutil.Process(supervisor.pid).children()]:
            process.terminate()
            process.wait()


def test_what_keeps_ending_is_started_ever_more_slowly():
    backoff = Backoff(settled=60)
    pauses = []
    for _ in range(10):
        before = time.monotonic()
        backoff.started()
        pauses.append(round(backoff.next_start - before, 1))
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert pauses[-1] == 30
