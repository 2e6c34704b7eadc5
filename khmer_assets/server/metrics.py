"""What Prometheus reads at /metrics, and nothing else.

Labels are bounded. `model` is the version that answered, as the answer itself calls it, and `adapter` the name of its
adapter, both "" where none answered; `tier` is the key's, and "" without a valid key. Versions and tiers that are gone
lose their series.
"""

from collections import Counter
from collections.abc import Collection
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Histogram, Info

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
ANSWERED_BY = ("model", "adapter", "tier")

# a second series for each of a counter, which nobody asks for
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The figures of one gateway."""

    def __init__(self) -> None:
        def counter(name: str, help: str, *labels: str) -> prometheus_client.Counter:
            return prometheus_client.Counter(f"khmer_{name}", help, labels, registry=self.registry)

        def histogram(name: str, help: str, *labels: str) -> Histogram:
            return Histogram(f"khmer_{name}", help, labels, buckets=SECONDS, registry=self.registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"khmer_{name}", help, labels, registry=self.registry)

        self.registry = CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self.requests = counter("requests", "Requests by endpoint and status", "endpoint", "status", "tier")
        self.answers = counter("answers", "Answers by outcome", "outcome", *ANSWERED_BY)
        self.tokens = counter("tokens", "Tokens read and written", "kind", *ANSWERED_BY)
        self.seconds = histogram("request_seconds", "Until the last byte", "endpoint", *ANSWERED_BY)
        self.first_token = histogram("first_token_seconds", "Until the first piece of a stream", *ANSWERED_BY)
        self.retries = counter("retries", "Requests given to another engine")
        self.stalled_readers = counter("stalled_readers", "Answers whose readers took nothing any more")
        self.running = gauge("running_requests", "Requests with an engine now", "engine")
        self.waiting = gauge("waiting_requests", "Requests that wait for an engine now")
        self.engine_up = gauge("engine_up", "Whether an engine says that it is well", "engine")
        self.release = Info("khmer_release", "The served release", registry=self.registry)
        answered = (self.answers, self.tokens, self.seconds, self.first_token)
        self._labelled = {"model": answered, "tier": (self.requests, *answered)}
        self._seen: dict[str, set[str]] = {label: set() for label in self._labelled}

    def follow(self, digest: str | None, models: Collection[str], tiers: Collection[str]) -> None:
        """Another release is served, or none. Only these models and tiers keep their series."""
        self.release.info({"digest": digest or ""})
        for label, kept in (("model", models), ("tier", tiers)):
            for gone in self._seen[label].difference(kept, [""]):
                for metric in self._labelled[label]:
                    metric.remove_by_labels({label: gone})
                self._seen[label].remove(gone)

    def refused(self, endpoint: str, status: int, tier: str) -> None:
        """The gateway itself has refused a request."""
        self._seen["tier"].add(tier)
        self.requests.labels(endpoint, status, tier).inc()

    def answered(self, endpoint: str, status: int, by: dict[str, str], record: dict[str, Any]) -> None:
        """An answer has ended. `by`: a value for each of `ANSWERED_BY`. `record`: the fields of its audit record."""
        for label, seen in self._seen.items():
            seen.add(by[label])
        self.requests.labels(endpoint, status, by["tier"]).inc()
        self.answers.labels(outcome=record["outcome"], **by).inc()
        self.seconds.labels(endpoint=endpoint, **by).observe(record["seconds"])
        if (seconds := record["seconds_to_first_token"]) is not None:
            self.first_token.labels(**by).observe(seconds)
        for kind in ("prompt_tokens", "completion_tokens"):
            self.tokens.labels(kind=kind, **by).inc((record["usage"] or {}).get(kind) or 0)

    def text(self, up: dict[int, bool], running: Counter[int], waiting: int) -> bytes:
        """All of them now. `up`: whether the engine on each port is well; `running`: also of engines not in `up`."""
        self.engine_up.clear()
        for port, well in up.items():
            self.engine_up.labels(port).set(well)
        self.running.clear()
        for port in {*up, *+running}:
            self.running.labels(port).set(running[port])
        self.waiting.set(waiting)
        return prometheus_client.generate_latest(self.registry)
