"""The description is true: each of its statuses is seen and no other, and schemathesis finds nothing else either."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import requests
import schemathesis

from khmer_assets.foundation.home import PROJECT
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.keys import KeyFile
from khmer_assets.server.state import ModelVersion, ServerState
from tests.server.gateways import RELEASE, Front, front
from tests.tiny_model import TOOL_TEMPLATE

PATH = "/v1/chat/completions"
VERSION = RELEASE.names[1]
CHAT = {"model": VERSION, "messages": [{"role": "user", "content": "តើរាជធានីឈ្មោះអ្វី?"}]}
TIERS = {"small": {"requests_a_minute": 1, "models": ["khmer-*"]}}
SHORT = {"body_seconds": 1.5, "wait_seconds": 3, "request_seconds": 6, "max_body_bytes": 10_000}


def ask(gateway, body=CHAT, key=None, content=None, **headers) -> requests.Response:
    headers = {"Authorization": f"Bearer {key or gateway.key}", **headers}
    content = json.dumps(body).encode() if content is None else content
    with requests.Session() as session:
        session.trust_env = False
        return session.post(gateway.address + PATH, data=content, headers=headers, timeout=30)


def slowly() -> Iterator[bytes]:
    """A body that takes longer than it may."""
    yield b"{"
    time.sleep(2 * SHORT["body_seconds"])


def all_statuses(gateway: Front) -> list[requests.Response]:
    """An answer of each status, in their order."""
    engine = gateway.engines[0]
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    found = [ask(gateway), ask(gateway, {}), ask(gateway, key="x"), ask(gateway, CHAT | {"model": "khmer"}, key)]
    found += [
        ask(gateway, CHAT | {"model": "other"}),
        ask(gateway, content=slowly()),
        ask(gateway, CHAT | {"user": "x" * 20_000}),
    ]
    assert ask(gateway, key=key).status_code == 200
    found += [ask(gateway, key=key), ask(gateway, a="x" * 40_000)]
    audit = gateway.home / "audit"
    shutil.move(audit, gateway.home / "elsewhere")
    audit.touch()  # no record can be written
    found.append(ask(gateway))
    audit.unlink()
    shutil.move(gateway.home / "elsewhere", audit)
    engine.mood = "broken"
    found.append(ask(gateway))
    state = ServerState.read(gateway.folder)
    state.model_copy(update={"ports": ()}).write(gateway.folder)
    found.append(ask(gateway))
    state.write(gateway.folder)
    engine.mood = "slow"
    return [*found, ask(gateway)]


def test_every_status_that_an_engine_s_path_can_answer_with_is_described_and_no_other(tmp_path):
    with front(tmp_path, tiers=TIERS, **SHORT) as gateway:
        document = httpx.get(f"{gateway.address}/openapi.json", trust_env=False).json()
        operation = schemathesis.openapi.from_dict(document)[PATH]["POST"]
        responses = all_statuses(gateway)
    for response in responses:
        operation.validate_response(response)
    statuses = [str(response.status_code) for response in responses]
    assert statuses == sorted(document["paths"][PATH]["post"]["responses"])


def test_the_description_shows_the_models_that_are_served_and_every_path(tmp_path):
    with front(tmp_path, engines=0) as gateway:
        document = httpx.get(f"{gateway.address}/openapi.json", trust_env=False).json()
        schemas = document["components"]["schemas"]
        assert schemas["Chat"]["properties"]["model"]["enum"] == list(RELEASE.names)
        assert {"messages", "model"} == set(schemas["Chat"]["required"])
        for path, methods in document["paths"].items():
            for method, described in methods.items():
                if method != "parameters":
                    response = httpx.request(method, gateway.address + path, trust_env=False, timeout=30)
                    assert str(response.status_code) in described["responses"], path


@pytest.mark.slow
def test_schemathesis_finds_no_failure_with_any_of_its_checks(tmp_path):
    with front(tmp_path, max_body_bytes=64_000_000) as gateway:  # too many messages are one mistake, not two
        release = ModelVersion(digest="a" * 16, max_model_length=65_536)  # how long prompts may be, no schema tells
        model = kept_model(gateway.folder, release.digest)
        model.mkdir(parents=True)
        (model / "chat_template.jinja").write_text(TOOL_TEMPLATE)
        ServerState.read(gateway.folder).model_copy(update={"release": release}).write(gateway.folder)
        program = Path(sys.executable).with_name("schemathesis")
        command = [str(program), "run", f"{gateway.address}/openapi.json", "-H", f"Authorization: Bearer {gateway.key}"]
        command += ["--checks", "all", "-n", "50", "--phases", "coverage,fuzzing", "--continue-on-failure"]
        env = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.server.schemathesis_hooks", "PYTHONPATH": str(PROJECT)}
        found = subprocess.run(command, cwd=gateway.home, capture_output=True, text=True, check=False, env=env)
    assert found.returncode == 0, found.stdout[-30_000:]
