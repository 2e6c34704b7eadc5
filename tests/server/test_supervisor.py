"""The supervisor: what is killed or hangs comes back, and what a killed deployment has left is mended."""

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from khmer_assets.server import engines, gateway_process
from khmer_assets.server.engines import Engine
from khmer_assets.server.gateway_process import GatewayProcess, listener
from khmer_assets.server.keys import secret
from khmer_assets.server.state import ModelServerError, ModelVersion, ServerState, deployment_lock
from khmer_assets.server.supervisor import UNHEALTHY_LOOKS, Backoff, Supervisor
from khmer_assets.server.vllm import VLLM_PYTHON_VARIABLE
from tests.ports import free_port

RELEASE = ModelVersion(digest="a" * 16, max_model_length=64)
HANGING = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
time.sleep(600)
"""


def certificate(folder) -> dict[str, str]:
    files = {"tls_certificate": str(folder / "certificate.pem"), "tls_key": str(folder / "key.pem")}
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    command += ["-out", files["tls_certificate"], "-keyout", files["tls_key"]]
    subprocess.run(command, check=True, capture_output=True)
    return files


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_users_of_a_killed_gateway_wait_and_are_not_refused(tmp_path, scheme, monkeypatch):
    (tmp_path / "server").mkdir()
    settings = certificate(tmp_path) if scheme == "https" else {}
    ServerState(release=RELEASE, gateway=settings).write(tmp_path / "server")
    monkeypatch.setenv(VLLM_PYTHON_VARIABLE, "/nowhere")
    started = GatewayProcess(tmp_path / "server", "127.0.0.1", free_port(), tls=scheme == "https")
    started.start()
    try:
        wait_until(started.answers)
        supervisor = started.process._process()
        (gateway,) = supervisor.children()
        gateway.kill()
        gateway.wait()
        answer = httpx.get(f"{started.address}/v1/models", trust_env=False, verify=False, timeout=30)
        assert answer.status_code == 401
        assert supervisor.children() != [gateway]
    finally:
        started.process.stop()


def test_a_gateway_whose_supervisor_was_killed_hands_over_without_a_gap(tmp_path, monkeypatch):
    folder = tmp_path / "server"
    folder.mkdir()
    ServerState(release=RELEASE).write(folder)
    monkeypatch.setenv(VLLM_PYTHON_VARIABLE, "/nowhere")
    started = GatewayProcess(folder, "127.0.0.1", free_port(), tls=False)
    started.start()
    ended, refused = threading.Event(), []

    def knock():
        while not ended.wait(0.02):
            try:
                socket.create_connection((started.host, started.port), timeout=10).close()
            except ConnectionRefusedError:
                refused.append(time.monotonic())

    try:
        wait_until(started.answers)
        supervisor = started.process._process()
        (orphan,) = supervisor.children()
        supervisor.kill()
        supervisor.wait()
        assert started.answers(), "its users notice nothing"
        with socket.create_connection((started.host, started.port)) as unfinished:
            head = f"Host: here\r\nAuthorization: Bearer {secret(started.key_file)}\r\nContent-Length: 9\r\n"
            unfinished.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}Expect: 100-continue\r\n\r\n".encode())
            assert unfinished.recv(100).startswith(b"HTTP/1.1 100"), "it is being read"
            knocking = threading.Thread(target=knock)
            knocking.start()
            assert started.start() is True
            wait_until(started.answers)
            assert orphan.is_running(), "it may finish what it has begun"
            ended.set()
            knocking.join()
        assert len(refused) < 20, "less than half a second"
        wait_until(lambda: not orphan.is_running())
        assert started.start() is False
    finally:
        ended.set()
        started.process.stop()


def test_a_gateway_that_lost_its_supervisor_and_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(gateway_process, "LEAVING_SECONDS", 1.0)
    started = GatewayProcess(tmp_path / "server", "127.0.0.1", free_port(), tls=False)
    started.start()
    try:
        wait_until(started.answers)
        supervisor = started.process._process()
        (orphan,) = supervisor.children()
        orphan.send_signal(signal.SIGSTOP)
        supervisor.kill()
        supervisor.wait()
        started.start()
        wait_until(started.answers)
        assert not orphan.is_running()
    finally:
        started.process.stop()


@pytest.mark.parametrize(("host", "found_at"), [("0.0.0.0", "127.0.0.1"), ("::1", "[::1]")])
def test_it_listens_where_it_is_told_to(tmp_path, host, found_at):
    started = GatewayProcess(tmp_path / "server", host, free_port(), tls=False)
    started.start()
    try:
        assert started.address == f"http://{found_at}:{started.port}"
        wait_until(started.answers)
    finally:
        started.process.stop()


def test_tls_is_switched_on_and_its_certificate_renewed_while_the_gateway_runs(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    plain, secure = (GatewayProcess(folder, "127.0.0.1", port, tls) for port in [free_port()] for tls in (False, True))
    plain.start()
    try:
        wait_until(plain.answers)
        supervisor = plain.process._process()
        files = certificate(tmp_path)
        ServerState(gateway=files).write(folder)
        wait_until(secure.answers)
        first = Path(files["tls_certificate"]).read_text()
        place = ("127.0.0.1", secure.port)
        assert ssl.get_server_certificate(place) == first
        gateways = supervisor.children()
        key = Path(files["tls_key"]).read_text()
        Path(files["tls_key"]).write_text("half")
        wait_until(lambda: "the former certificate is used" in plain.process.log.read_text())
        assert ssl.get_server_certificate(place) == first
        Path(files["tls_key"]).write_text(key)
        certificate(tmp_path)
        renewed = Path(files["tls_certificate"]).read_text()
        wait_until(lambda: ssl.get_server_certificate(place) == renewed)
        assert supervisor.children() == gateways
        ServerState().write(folder)
        wait_until(plain.answers)
        assert plain.process._process() == supervisor
    finally:
        plain.process.stop()


@pytest.fixture
def supervisor(tmp_path):
    (tmp_path / "server").mkdir()
    port = free_port()
    with listener("127.0.0.1", port) as public:
        public.set_inheritable(True)
        supervisor = Supervisor(tmp_path, "127.0.0.1", port, public)
        yield supervisor
        for engine in engines.known_engines(supervisor.folder):
            engine.process.stop()
        if supervisor.gateway is not None:
            supervisor.gateway.kill()
            supervisor.gateway.wait()


def test_a_gateway_that_hangs_is_started_again(supervisor, monkeypatch):
    monkeypatch.setattr(gateway_process, "ANSWER_SECONDS", 1.0)
    supervisor.look_at_gateway()
    hung = supervisor.gateway
    supervisor.check_gateway()  # it starts, and may
    wait_until(supervisor.public_gateway().answers)
    supervisor.check_gateway()
    assert hung.poll() is None
    hung.send_signal(signal.SIGSTOP)
    for _ in range(UNHEALTHY_LOOKS):
        supervisor.check_gateway()
    assert hung.wait(10) == -signal.SIGKILL
    supervisor.look_at_gateway()
    wait_until(supervisor.public_gateway().answers)


def hanging_engine(folder) -> Engine:
    """One that accepts connections and does no more."""
    engine = Engine(folder, free_port())
    engine.process.start([sys.executable, "-c", HANGING, str(engine.port)])
    return engine


def test_an_engine_that_hangs_before_it_was_ever_healthy_is_ended(supervisor, monkeypatch):
    engine = hanging_engine(supervisor.folder)
    ServerState(release=RELEASE, ports=(engine.port,)).write(supervisor.folder)
    monkeypatch.setattr(Engine, "answers_health", lambda _: False)  # as after ten seconds
    for _ in range(UNHEALTHY_LOOKS):
        supervisor.check_engines()
    assert engine.process.is_running(), "it has its time to start"
    monkeypatch.setattr(engines, "START_SECONDS", 0.0)
    for _ in range(UNHEALTHY_LOOKS):
        supervisor.check_engines()
    assert not engine.process.is_running()


def test_what_a_killed_deployment_has_left_is_mended_and_a_running_one_left_alone(supervisor):
    new = hanging_engine(supervisor.folder)
    ServerState(release=RELEASE, paused=(1,)).write(supervisor.folder)
    supervisor.look_at_gateway()
    wait_until(supervisor.public_gateway().answers)
    with deployment_lock(supervisor.folder) as held:
        assert held
        supervisor.mend()
        assert new.process.is_running()
        assert ServerState.read(supervisor.folder).paused == (1,)
    supervisor.mend()
    assert not new.process.is_running()
    assert ServerState.read(supervisor.folder).ports == (1,)


def test_a_state_that_cannot_be_read_is_told_once_and_ends_nothing(supervisor, capsys):
    engine = hanging_engine(supervisor.folder)
    (supervisor.folder / "server.json").write_text('{"release": ')
    for look in (supervisor.look_at_engines, supervisor.mend, supervisor.mend):
        with pytest.raises(ModelServerError, match=r"server\.json: expected what is served") as error:
            look()
        supervisor.tell(error.value)
    assert capsys.readouterr().out.count("server.json") == 1
    assert engine.process.is_running()


def wait_until(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
