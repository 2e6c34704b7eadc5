"""The samples in deploy/: nginx passes streams on as they come and hides what no user needs; systemd takes the unit."""

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from khmer_assets.foundation.home import PROJECT
from tests.ports import free_port
from tests.server.gateways import WORDS, front
from tests.server.test_supervisor import certificate, wait_until

CHAT = {"model": "khmer", "messages": [{"role": "user", "content": "តើថ្ងៃនេះជាថ្ងៃអ្វី?"}], "stream": True}
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/bin:/usr/bin")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_nginx_streams_over_https_and_hides_the_figures(tmp_path):
    files, port = certificate(tmp_path), free_port()
    with front(tmp_path / "home") as gateway:
        gateway.engines[0].mood = "slow"  # half a minute between two words
        sample = (PROJECT / "deploy" / "nginx.conf").read_text()
        for given, used in {
            "127.0.0.1:8000": f"127.0.0.1:{gateway.port}",
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/ssl/khmer/certificate.pem": files["tls_certificate"],
            "/etc/ssl/khmer/key.pem": files["tls_key"],
        }.items():
            assert given in sample
            sample = sample.replace(given, used)
        folders = "".join(
            f"{kind}_temp_path {tmp_path / kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        logs = f"error_log {tmp_path / 'error.log'};\npid {tmp_path / 'pid'};\ndaemon off;\n"
        whole = f"{logs}events {{}}\nhttp {{\naccess_log off;\n{folders}{sample}}}\n"
        (tmp_path / "nginx.conf").write_text(whole)
        nginx = subprocess.Popen([str(NGINX), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log")])
        context = ssl.create_default_context(cafile=files["tls_certificate"])
        headers = {"Authorization": f"Bearer {gateway.key}"}
        try:
            with httpx.Client(
                base_url=f"https://localhost:{port}", verify=context, headers=headers, timeout=20
            ) as user:
                wait_until(lambda: _answers(user))
                with user.stream("POST", "/v1/chat/completions", json=CHAT) as response:
                    assert WORDS[0].encode("unicode_escape") in next(response.iter_bytes()), "long before the last word"
                assert user.get("/").status_code == 200
                assert [user.get(path).status_code for path in ("/metrics", "/health")] == [404, 404]
        finally:
            nginx.terminate()
            nginx.wait()


def _answers(user: httpx.Client) -> bool:
    try:
        return user.get("/v1/models").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit_whose_command_exists(tmp_path):
    unit = (PROJECT / "deploy" / "khmer-serving.service").read_text()
    (command,) = [line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart=")]
    program, *words = command.split()
    assert words == ["resume", "--foreground"]
    assert Path(program).name == "khmer"
    place = tmp_path / "khmer-serving.service"
    place.write_text(unit.replace(program, shutil.which("true") or "/bin/true").replace("/opt/khmer-llm-factory", "/"))
    analyzed = subprocess.run(["systemd-analyze", "verify", str(place)], capture_output=True, text=True, check=False)
    assert analyzed.returncode == 0, analyzed.stderr
    assert "khmer-serving" not in analyzed.stderr
