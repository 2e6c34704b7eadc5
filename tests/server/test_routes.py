"""What each path tells whom: the models of a key, what is left of its limits, and which request is which."""

import json
import socket

import httpx
import pytest

from khmer_assets.server.keys import KeyFile
from khmer_assets.server.state import ServerState
from tests.server.gateways import RELEASE, front

VERSION = RELEASE.names[1]
TIERS = {"small": {"requests_a_minute": 3, "tokens_a_minute": 600, "models": ["khmer-*"]}}
CHAT = {"model": VERSION, "messages": [{"role": "user", "content": "តើរាជធានីឈ្មោះអ្វី?"}]}


@pytest.fixture
def gateway(tmp_path):
    with front(tmp_path, tiers=TIERS) as started:
        yield started


def ask(gateway, path="/v1/chat/completions", body=None, key=None, **headers) -> httpx.Response:
    """POST a body, or GET without one; an underscore of a header's name stands for its dashes."""
    sent = {"Authorization": f"Bearer {key or gateway.key}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    method = "GET" if body is None else "POST"
    return httpx.request(method, gateway.address + path, json=body, headers=sent, timeout=20, trust_env=False)


def limits(response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("x-ratelimit")}


def lines(caplog) -> list[dict]:
    return [json.loads(record.getMessage()) for record in caplog.records if record.name == "khmer.gateway"]


def test_a_key_sees_the_models_that_it_may_use(gateway):
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    assert [model["id"] for model in ask(gateway, "/v1/models").json()["data"]] == ["khmer", VERSION]
    assert [model["id"] for model in ask(gateway, "/v1/models", key=key).json()["data"]] == [VERSION]
    assert ask(gateway, f"/v1/models/{VERSION}", key=key).json()["id"] == VERSION
    assert ask(gateway, "/v1/models/khmer", key=key).status_code == 403
    unknown = ask(gateway, "/v1/models/nothing", key=key)
    assert unknown.status_code == 404
    assert unknown.json()["error"]["message"] == f"there is no model 'nothing'; served are {VERSION}"


def test_a_path_with_dots_is_answered_as_it_was_sent(gateway):
    for path in ("/v1/models/../../server/api_key", "/v1/%2e%2e/%2e%2e/etc/passwd", "/../../etc/passwd"):
        with socket.create_connection(("127.0.0.1", gateway.port)) as connection:  # libraries would shorten the path
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {gateway.key}\r\n\r\n"
            connection.sendall(head.encode())
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))
        assert answer.startswith(b"HTTP/1.1 404 ") and gateway.key.encode() not in answer


def test_every_answer_to_a_key_with_limits_tells_what_is_left(gateway):
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    assert limits(ask(gateway, body=CHAT)) == {}
    left = [ask(gateway, body=CHAT | {"stream": stream}, key=key) for stream in (False, True, False, True)]
    assert [response.status_code for response in left] == [200, 200, 200, 429]
    assert [response.headers["x-ratelimit-remaining-requests"] for response in left] == ["2", "1", "0", "0"]
    assert all(int(response.headers["x-ratelimit-remaining-tokens"]) < 600 for response in left)
    mistaken = ask(gateway, body={"model": VERSION}, key=key)
    assert mistaken.status_code == 400 and limits(mistaken)["x-ratelimit-limit-requests"] == "3"


@pytest.mark.parametrize("given", ["5f0c-ទេ", "a b", "x" * 129, ""])
def test_a_request_id_that_no_log_should_hold_is_replaced(gateway, given):
    response = ask(gateway, body=CHAT, X_Request_Id=given.encode())
    (record,) = gateway.records()
    assert response.headers["x-request-id"] == record["request_id"] == record["id"]


def test_the_request_id_and_the_user_of_a_client_are_in_the_answer_the_record_and_the_log(gateway, caplog):
    with caplog.at_level("INFO", logger="khmer.gateway"):
        answered = ask(gateway, body=CHAT | {"user": "សុខា ១២"}, X_Request_Id="trace:01/a")
        refused = ask(gateway, body={}, X_Request_Id="trace:02/a")
    assert [response.headers["x-request-id"] for response in (answered, refused)] == ["trace:01/a", "trace:02/a"]
    record = gateway.record("completed")
    assert record["request_id"] == "trace:01/a" and record["user"] == "សុខា ១២"
    assert [line["request_id"] for line in lines(caplog)] == ["trace:01/a", "trace:02/a"]
    assert ask(gateway, body=CHAT | {"user": 12}).status_code == 400


def test_a_refusal_is_logged_with_the_id_of_its_key(gateway, caplog):
    keys = KeyFile(gateway.folder)
    key, text = keys.create("ដារ៉ា", "small")
    with caplog.at_level("INFO", logger="khmer.gateway"):
        assert ask(gateway, body=CHAT | {"model": "khmer"}, key=text).status_code == 403
        assert ask(gateway, body=CHAT, key="nobody's").status_code == 401
        keys.revoke(key.id)
        assert ask(gateway, body=CHAT, key=text).status_code == 401
    told = [(line["status"], line["key_id"]) for line in lines(caplog)]
    assert told == [(403, key.id), (401, None), (401, key.id)]
    assert text not in caplog.text and "nobody" not in caplog.text


def test_a_key_without_its_tier_is_refused_everywhere(gateway):
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    ServerState.read(gateway.folder).model_copy(update={"gateway": {}}).write(gateway.folder)
    assert ask(gateway, "/v1/models", key=key).status_code == ask(gateway, body=CHAT, key=key).status_code == 403


def test_keys_that_cannot_be_read_let_nobody_in_and_the_log_tells_why(gateway, caplog):
    file = gateway.folder / "keys.json"
    file.write_text("half of a fi")
    for _ in range(2):
        response = ask(gateway, "/v1/models")
        assert response.status_code == 500 and response.json()["error"]["type"] == "server_error"
    failures = [record for record in caplog.records if record.name == "khmer.gateway" and record.levelname == "ERROR"]
    assert len(failures) == 2 and all("keys.json: expected API keys" in record.getMessage() for record in failures)
    file.unlink()
    assert ask(gateway, "/v1/models").status_code == 200


def test_a_method_that_is_not_there_is_refused_with_those_that_are(gateway):
    response = httpx.put(f"{gateway.address}/v1/models", trust_env=False)
    assert response.status_code == 405 and "GET" in response.headers["allow"]
