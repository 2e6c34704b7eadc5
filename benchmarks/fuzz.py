"""What the gateway answers to requests that schemathesis makes up: as its description allows, and as it forbids.

    python -m benchmarks.fuzz --requests 10000

vLLM with a random model of the recipe's size stands behind it. Each request is sent with the owner's key, with one of a
tier that is soon used up, with a revoked or an unknown one, with what is no key at all, or without any.
`gateway_errors` are answers of status 500, and requests that got none; `engine_errors` those of 502 to 504, for which
the engine is well throughout; `errors_it_counts` are both in the gateway's own figures. `undescribed` are answers whose
status, type, headers or body the description does not tell. All should be 0.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from benchmarks.gateway import started_server
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.server.keys import KeyFile

DESCRIBED = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
USERS = 8
MODEL_LENGTH = 64  # tokens: a random model always says as much as it may
TIERS = {"wide": {"requests_a_minute": 1_000_000, "tokens_a_minute": 1_000_000_000}, "narrow": {"streams": 1}}


@dataclass
class Seen:
    """Answers by endpoint and status ("none": the connection ended), and those that the description does not tell."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    undescribed: list[str] = field(default_factory=list)


def keys_of_all_kinds(folder: Path, owner: str) -> list[str | None]:
    """Values of the header Authorization: valid ones, and those that must not be let in."""
    file = KeyFile(folder)
    revoked, revoked_text = file.create("revoked", "wide")
    file.revoke(revoked.id)
    texts = [owner, owner, *(file.create(tier, tier)[1] for tier in TIERS), revoked_text, "khmer-00000000-unknown"]
    return [f"Bearer {text}" for text in texts] + ["Basic a2htZXI6a2htZXI=", "Bearer ", "\xff\x80", None]


def fuzz(address: str, keys: list[str | None], count: int, start: int = 0) -> Seen:
    """Send `count` requests, as many to each endpoint, `USERS` at a time; `start` seeds what is made up."""
    schema = schemathesis.openapi.from_dict(httpx.get(f"{address}/openapi.json", trust_env=False, timeout=60).json())
    load_all_checks()
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    seen, sent = Seen(), []
    with ThreadPoolExecutor(USERS) as users:
        for number, operation in enumerate(operations):
            due = count // len(operations) + (number < count % len(operations))
            cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in GenerationMode))
            made: list[tuple[Case, str | None]] = []
            turn = start
            while len(made) < due:  # of a path without parameters, few different requests are made up at a time
                turn += 1
                make_up(cases, st.sampled_from(keys), due - len(made), turn, made)
            for case, key in made:
                sent.append(users.submit(one_request, case, key, address, seen))
    for done in sent:
        done.result()  # raises what one_request has raised
    return seen


def make_up(cases: Any, keys: Any, most: int, number: int, made: list[tuple[Case, str | None]]) -> None:
    """Add at least one and at most `most` requests to `made`."""

    @seed(number)
    @settings(
        max_examples=most,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, key=keys)
    def keep(case: Case, key: str | None) -> None:
        if len(made) < most_in_all:
            made.append((case, key))

    most_in_all = len(made) + most
    keep()


def one_request(case: Case, key: str | None, address: str, seen: Seen) -> None:
    """Send a request, and note what came."""
    case.headers.pop("Authorization", None)
    if key is not None:
        case.headers["Authorization"] = key
    endpoint = f"{case.method} {case.operation.path}"
    try:
        with requests.Session() as session:
            session.trust_env = False
            response = case.call(base_url=address, session=session, timeout=120)
    except requests.RequestException as error:
        seen.answers[endpoint, "none"] += 1
        seen.undescribed.append(f"{endpoint}: {error!r}")
        return
    seen.answers[endpoint, str(response.status_code)] += 1
    try:
        case.validate_response(response, checks=DESCRIBED)
    except FailureGroup as failures:
        seen.undescribed += [f"{endpoint}: {response.status_code}: {failure}" for failure in failures.exceptions]


def errors_it_counts(address: str) -> int:
    """How many requests the gateway's own figures say have failed, also where their users saw nothing of it."""
    text = httpx.get(f"{address}/metrics", trust_env=False, timeout=60).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    failed = [s for s in samples if s.name == "khmer_requests_total" and s.labels["status"].startswith("5")]
    return int(sum(sample.value for sample in failed))


def main() -> None:
    """Send them, print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=9000)
    arguments = parser.parse_args()
    recipe = Recipe.load(SAMPLE_RECIPE)
    short = recipe.serving.model_copy(update={"max_model_length": MODEL_LENGTH})
    with tempfile.TemporaryDirectory() as home:
        server = started_server(
            Path(home), recipe.model_copy(update={"serving": short}), arguments.port, gateway={"tiers": TIERS}
        )
        try:
            keys = keys_of_all_kinds(Path(home) / "server", server.api_key())
            started = time.monotonic()
            seen = fuzz(server.address, keys, arguments.requests, arguments.seed)
            seconds = time.monotonic() - started
            counted = errors_it_counts(server.address)
        finally:
            server.stop()
    rows = [
        {"endpoint": endpoint, "status": status, "answers": count} for (endpoint, status), count in seen.answers.items()
    ]
    table = pl.DataFrame(rows).pivot("status", index="endpoint", values="answers", sort_columns=True)
    print(markdown_table(table.sort("endpoint").fill_null(0)))
    for told in seen.undescribed[:10]:
        print(told)
    statuses = Counter[str]()
    for (_, status), number in seen.answers.items():
        statuses[status] += number
    result = {
        "requests": statuses.total(),
        "answered": statuses["200"],
        "gateway_errors": statuses["500"] + statuses["none"],
        "engine_errors": sum(statuses[status] for status in ("502", "503", "504")),
        "errors_it_counts": counted,
        "undescribed": len(seen.undescribed),
        "requests_per_second": round(statuses.total() / seconds, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
