"""What Prometheus reads at /metrics, and nothing else."""

from collections import Counter
from collections.abc import Iterable

import prometheus_client

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS = prometheus_client.Counter("khmer_requests", "Requests by endpoint and status", ["endpoint", "status"])
OUTCOMES = prometheus_client.Counter("khmer_answers", "Answers by outcome", ["outcome"])
LATENCY = prometheus_client.Histogram("khmer_request_seconds", "Until the last byte", ["endpoint"], buckets=SECONDS)
FIRST_TOKEN = prometheus_client.Histogram("khmer_first_token_seconds", "Until the first byte", buckets=SECONDS)
TOKENS = prometheus_client.Counter("khmer_tokens", "Tokens read and written", ["kind"])
RETRIES = prometheus_client.Counter("khmer_retries", "Requests given to another engine")
RUNNING = prometheus_client.Gauge("khmer_running_requests", "Requests with an engine now", ["engine"])
ENGINE_UP = prometheus_client.Gauge("khmer_engine_up", "Whether an engine can be reached", ["engine"])
RELEASE = prometheus_client.Info("khmer_release", "The served release")


def note_served(digest: str | None, ports: Iterable[int]) -> None:
    """Another release or other engines are served from now on."""
    ENGINE_UP.clear()
    RUNNING.clear()
    for port in ports:
        ENGINE_UP.labels(port).set(1)
    if digest is not None:
        RELEASE.info({"digest": digest})


def text(ports: Iterable[int], running: Counter[int]) -> bytes:
    """All of them now. `running`: requests by the port of their engine, also of engines that are not in `ports`."""
    for port in {*ports, *running}:
        RUNNING.labels(port).set(running[port])
    return prometheus_client.generate_latest()
