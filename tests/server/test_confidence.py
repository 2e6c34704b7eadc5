"""Confidence is the scaled chance of an answer, from the log-probabilities of its tokens."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from khmer_assets.server.confidence import Scaling, score

LOGPROBS = st.lists(st.floats(-1e4, 0), min_size=1, max_size=50)


@given(LOGPROBS, st.floats(0, 100), st.floats(-50, 50))
def test_it_is_a_chance_and_falls_with_each_token_that_is_less_likely(logprobs, slope, offset):
    scaling = Scaling(slope=slope, offset=offset)
    confidence = scaling.confidence(logprobs)
    assert confidence is not None and 0 <= confidence <= 1
    assert scaling.confidence([one - 1 for one in logprobs]) <= confidence


@pytest.mark.parametrize("logprobs", [[], [math.nan], [-0.1, -math.inf], [math.inf]])
def test_there_is_none_without_a_number(logprobs):
    assert score(logprobs) is None and Scaling(slope=1, offset=0).confidence(logprobs) is None


def test_an_answer_is_between_its_whole_and_its_mean_likelihood():
    logprobs = [-0.1, -0.3, -0.2, -0.4]
    assert sum(logprobs) < score(logprobs) < sum(logprobs) / 4
