"""Figures: right by themselves, with labels that stay few, and such as the real Prometheus reads and judges them."""

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from khmer_assets.foundation.home import PROJECT
from khmer_assets.server.keys import KeyFile
from khmer_assets.server.state import AdapterVersion, ModelVersion, ServerState
from tests.server.gateways import RELEASE, StandIn, front, listening

DEPLOY = PROJECT / "deploy"
CHAT = {"model": "khmer", "messages": [{"role": "user", "content": "តើរាជធានីឈ្មោះអ្វី?"}]}
TIERS = {"small": {"requests_a_minute": 3}}
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="prometheus and promtool are not installed (on Debian: apt-get install prometheus)",
)


@pytest.fixture
def gateway(tmp_path):
    with front(tmp_path, tiers=TIERS) as started:
        yield started


def post(gateway, key=None, **fields) -> int:
    headers = {"Authorization": f"Bearer {key or gateway.key}"}
    address = f"{gateway.address}/v1/chat/completions"
    return httpx.post(address, json=CHAT | fields, headers=headers, timeout=30, trust_env=False).status_code


def exposed(gateway) -> str:
    return httpx.get(f"{gateway.address}/metrics", timeout=30, trust_env=False).text


def figure(gateway, name: str, **labels: Any) -> float | None:
    """The sum of the series of this name with these labels; None when there are none."""
    wanted = {label: str(value) for label, value in labels.items()}.items()
    samples = [sample for family in text_string_to_metric_families(exposed(gateway)) for sample in family.samples]
    found = [sample.value for sample in samples if sample.name == name and wanted <= sample.labels.items()]
    return sum(found) if found else None


def until(holds: Callable[[], Any]) -> Any:
    for _ in range(600):
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come true within 30 s")


def serve(gateway, **changes: Any) -> None:
    ServerState.read(gateway.folder).model_copy(update=changes).write(gateway.folder)


def test_a_gateway_counts_its_own_requests_by_model_adapter_and_tier(gateway):
    assert figure(gateway, "khmer_requests_total") is None  # what other gateways of this process have done is not its
    adapter = AdapterVersion(name="numbers", digest="c" * 16, base="b" * 16)
    release = RELEASE.model_copy(update={"base": "b" * 16, "engine": {"enable_lora": True}})
    serve(gateway, release=release, adapters=(adapter,))
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")
    asked = [post(gateway), post(gateway, key, stream=True), post(gateway, key, model="khmer-numbers")]
    asked += [post(gateway, key, n="one"), post(gateway, key), post(gateway, key), post(gateway, "nobody's")]
    assert asked == [200, 200, 200, 400, 200, 429, 401]
    for status, tier, count in (
        (200, "owner", 1),
        (200, "small", 3),
        (400, "small", 1),
        (429, "small", 1),
        (401, "", 1),
    ):
        assert figure(gateway, "khmer_requests_total", status=status, tier=tier) == count
    version, adapted = release.names[1], adapter.names[1]
    assert figure(gateway, "khmer_answers_total", model=version, adapter="", tier="small", outcome="completed") == 2
    assert figure(gateway, "khmer_answers_total", model=adapted, adapter="numbers", tier="small") == 1
    assert figure(gateway, "khmer_tokens_total", model=version, tier="small", kind="completion_tokens") == 6
    assert figure(gateway, "khmer_request_seconds_count", model=adapted, endpoint="/v1/chat/completions") == 1


def test_first_token_times_are_those_of_streams_that_began(gateway):
    post(gateway)
    gateway.engines[0].mood = "refusing"
    post(gateway, stream=True)
    assert figure(gateway, "khmer_first_token_seconds_count") is None
    assert {record["seconds_to_first_token"] for record in gateway.records()} == {None}
    gateway.engines[0].mood = "well"
    post(gateway, stream=True)
    assert figure(gateway, "khmer_first_token_seconds_count", model=RELEASE.names[1], tier="owner") == 1


def test_an_engine_that_dies_or_comes_is_seen_without_a_request(gateway):
    with listening(StandIn(gateway.folder).app) as port:
        serve(gateway, ports=(port,))
        assert figure(gateway, "khmer_engine_up", engine=port) == 1
    assert figure(gateway, "khmer_engine_up", engine=port) == 0
    serve(gateway, ports=tuple(gateway.ports))
    assert figure(gateway, "khmer_engine_up", engine=gateway.ports[0]) == 1
    assert figure(gateway, "khmer_engine_up", engine=port) is None


def test_an_engine_that_never_answers_is_not_well_and_holds_nothing_up(gateway):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        serve(gateway, ports=(port, *gateway.ports))
        assert figure(gateway, "khmer_engine_up", engine=port) == 0
        assert figure(gateway, "khmer_engine_up", engine=gateway.ports[0]) == 1


def test_requests_that_wait_for_an_engine_are_told(gateway):
    serve(gateway, ports=())
    asking = threading.Thread(target=post, args=[gateway])
    asking.start()
    until(lambda: figure(gateway, "khmer_waiting_requests") == 1)
    serve(gateway, ports=tuple(gateway.ports))
    asking.join()
    assert figure(gateway, "khmer_waiting_requests") == 0


def test_what_is_no_longer_served_loses_its_series(gateway):
    releases = [ModelVersion(digest=f"{number:x}" * 16, max_model_length=64) for number in range(5)]
    for former, release in zip([None, *releases], releases, strict=False):
        serve(gateway, release=release, former=former)
        assert post(gateway) == 200
    told = {sample.labels["model"] for sample in samples(gateway, "khmer_answers_total")}
    assert told == {release.names[1] for release in releases[-2:]}
    serve(gateway, release=None, former=None, ports=())
    assert figure(gateway, "khmer_release_info", digest="") == 1 and not samples(gateway, "khmer_answers_total")


def samples(gateway, name: str) -> list[Any]:
    families = text_string_to_metric_families(exposed(gateway))
    return [sample for family in families for sample in family.samples if sample.name == name]


def promtool(*words: str, given: str = "", cwd: Path = DEPLOY) -> None:
    done = subprocess.run(["promtool", *words], input=given, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
def test_promtool_finds_no_fault_with_the_rules_the_configuration_and_the_figures(gateway):
    promtool("check", "config", "prometheus.yml")  # and the rules that it names
    post(gateway, stream=True)
    promtool("check", "metrics", given=exposed(gateway))


REQUESTS = 'khmer_requests_total{endpoint="/v1/chat/completions",tier="small",status='
FIRST_TOKEN = 'khmer_first_token_seconds_bucket{adapter="",tier="small",model="khmer-a",le='
FIRES = {  # alert: what it must fire for after an hour of steps of a minute, and the labels that it then has
    "GatewayDown": ({'up{job="khmer",instance="i"}': "0x60"}, {"job": "khmer", "instance": "i"}),
    "NoEngine": ({'up{job="khmer",instance="i"}': "1x60"}, {"job": "khmer", "instance": "i"}),
    "EngineDown": ({'khmer_engine_up{engine="8001"}': "0x60"}, {"engine": "8001"}),
    "RequestsWait": ({"khmer_waiting_requests": "3x60"}, {}),
    "RequestsFail": ({f'{REQUESTS}"200"}}': "0+97x60", f'{REQUESTS}"502"}}': "0+3x60"}, {}),
    "FirstTokenSlow": (
        {f'{FIRST_TOKEN}"1"}}': "0+9x60", f'{FIRST_TOKEN}"5"}}': "0+10x60", f'{FIRST_TOKEN}"+Inf"}}': "0+10x60"},
        {"model": "khmer-a"},
    ),
    "ManyRefusedForLimits": ({f'{REQUESTS}"429"}}': "0+90x60"}, {"tier": "small"}),
}
WELL = {
    'up{job="khmer",instance="i"}': "1x60",
    'khmer_engine_up{engine="8001",instance="i"}': "1x60",
    'khmer_engine_up{engine="8002",instance="i"}': "1x60",
    "khmer_waiting_requests": "0 9 0 " * 20,
    f'{REQUESTS}"200"}}': "0+1000x60",
    f'{REQUESTS}"502"}}': "0+9x60",
    f'{REQUESTS}"429"}}': "0+50x60",
    f'{FIRST_TOKEN}"1"}}': "0+10x60",
    f'{FIRST_TOKEN}"+Inf"}}': "0+10x60",
}


@needs_prometheus
def test_each_alert_fires_for_what_it_is_there_for_and_for_nothing_else(tmp_path):
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == FIRES.keys()
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)

    def case(series: dict[str, str], expected: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
        checks = [{"eval_time": "50m", "alertname": name, "exp_alerts": expected.get(name, [])} for name in FIRES]
        given = [{"series": name, "values": values} for name, values in series.items()]
        return {"interval": "1m", "input_series": given, "alert_rule_test": checks}

    cases = [case(WELL, {})]
    for rule in rules:
        series, labels = FIRES[rule["alert"]]
        told = rule["annotations"]["summary"].replace("{{ $value }}", "3")
        for label, value in labels.items():
            told = told.replace(f"{{{{ $labels.{label} }}}}", value)
        firing = {rule["alert"]: [{"exp_labels": labels, "exp_annotations": {"summary": told}}]}
        cases.append(case(series, firing))
    tests = {"rule_files": ["alerts.yml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", "tests.yml", cwd=tmp_path)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """The real one with the project's configuration, but for the address and a scrape four times a second."""
    configuration = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    configuration["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "250ms")
    configuration["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    shutil.copy(DEPLOY / "alerts.yml", folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", trust_env=False) as client:
            yield client
    finally:
        process.kill()
        process.wait()


@needs_prometheus
def test_the_real_prometheus_scrapes_the_gateway_and_has_data_for_the_whole_dashboard(gateway, tmp_path):
    dashboard = json.loads((DEPLOY / "grafana_dashboard.json").read_text())
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel["targets"]}
    asked |= {annotation["expr"] for annotation in dashboard["annotations"]["list"]}
    _, key = KeyFile(gateway.folder).create("ដារ៉ា", "small")

    def found(expression: str) -> list[Any]:
        try:
            answer = client.get("/query", params={"query": expression})
        except httpx.TransportError:
            return []  # it is starting
        assert answer.status_code in (200, 503), f"{expression}: {answer.text}"  # 503: it is starting, too
        return answer.json()["data"]["result"] if answer.status_code == 200 else []

    with prometheus(tmp_path / "prometheus", f"127.0.0.1:{gateway.port}") as client:
        until(lambda: found('up{job="khmer"} == 1'))

        def without_data() -> set[str]:
            post(gateway, key, stream=True)  # a rate needs two scrapes
            return {expression for expression in asked if not found(expression)}

        until(lambda: not without_data())
        rules = client.get("/rules").json()["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
        with socket.create_server(("127.0.0.1", 0)) as closed:
            dead = closed.getsockname()[1]
        serve(gateway, ports=(dead,))
        pending = until(lambda: found('ALERTS{alertname="EngineDown"}'))
        assert pending[0]["metric"]["engine"] == str(dead)
