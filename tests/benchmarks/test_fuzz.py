"""Requests of all kinds, made up within and beyond the description, get an answer that it tells, and never a 5xx."""

import pytest

from benchmarks.fuzz import TIERS, errors_it_counts, fuzz, keys_of_all_kinds
from tests.server.gateways import front

REQUESTS = 1000


@pytest.mark.slow
def test_no_request_makes_the_gateway_fail(tmp_path):
    with front(tmp_path, tiers=TIERS) as gateway:
        seen = fuzz(gateway.address, keys_of_all_kinds(gateway.folder, gateway.key), REQUESTS)
        assert errors_it_counts(gateway.address) == 0
    statuses = {status for _, status in seen.answers}
    assert seen.answers.total() == REQUESTS and not seen.undescribed
    assert {"200", "400", "401"} <= statuses, "valid and invalid requests and keys were among them"
    assert not {status for status in statuses if status >= "5"}
