"""A router is numbers and names; what is anything else is refused with what to do."""

import json
import pickle

import numpy as np
import pytest

from khmer_assets.server import router_file
from khmer_assets.server.router_file import ABOUT, WEIGHTS, About, Router
from khmer_assets.server.state import ModelServerError
from khmer_assets.server.text_features import BUCKETS
from tests.server.routers import CAPITAL, NUMBER, learned


def test_what_is_written_is_read_and_says_the_same(tmp_path):
    learned().save(tmp_path)
    found = Router.load(tmp_path)
    assert found.about == learned().about
    for text in (NUMBER, CAPITAL, "", "\u200b", "ខុសហើយ" * 10_000):
        assert found.chances("", text, 0.3) == learned().chances("", text, 0.3)
        assert sum(found.chances("", text)) == pytest.approx(1) and 0 < found.dissatisfaction(text) < 1
    assert (found.domain("", NUMBER), found.domain("", CAPITAL), found.guess("", CAPITAL)) == (
        "numbers",
        None,
        "numbers",
    )


def about(**changes) -> bytes:
    return json.dumps(json.loads(learned().about.model_dump_json()) | changes).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (ABOUT, b""),
        (ABOUT, b"[]"),
        (ABOUT, about(version=1)),
        (ABOUT, about(domains=[])),
        (ABOUT, about(biases=[0.0])),
        (ABOUT, about(biases=[float("nan"), 0.0])),
        (ABOUT, about(domains=["a", "a"], biases=[0.0] * 3, of_confidence=[0.0] * 3)),
        (ABOUT, about(threshold=7)),
        (ABOUT, about(domains=["numbers", "months"], biases=[0.0] * 3, of_confidence=[0.0] * 3)),
        (WEIGHTS, b""),
        (WEIGHTS, b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }\n"),
        (WEIGHTS, pickle.dumps({})),
        (WEIGHTS, b"PK\x03\x04 no archive either"),
        (WEIGHTS, None),
    ],
)
def test_files_of_no_router_are_refused_with_what_to_do(tmp_path, name, content):
    learned().save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelServerError, match=r"cannot be read: [^\n]*materialize the asset router again"):
        Router.load(tmp_path)


@pytest.mark.parametrize(
    "weights",
    [
        np.zeros((BUCKETS, 2), np.float32),
        np.zeros((BUCKETS, 3), np.float64),
        np.full((BUCKETS, 3), np.nan, np.float32),
        np.array([{"an": "object"}], dtype=object),
    ],
)
def test_so_are_weights_that_are_none(tmp_path, weights):
    learned().save(tmp_path)
    np.save(tmp_path / WEIGHTS, weights, allow_pickle=True)
    with pytest.raises(ModelServerError, match=r"weights\.npy|pickle"):
        Router.load(tmp_path)


def test_a_file_that_is_too_large_is_not_even_read(tmp_path, monkeypatch):
    learned().save(tmp_path)
    monkeypatch.setattr(router_file, "MOST_BYTES", 1000)
    with pytest.raises(ModelServerError, match="more than 1,000 bytes"):
        Router.load(tmp_path)


@pytest.mark.parametrize(("router", "gains"), [(0.9, True), (0.5, False), (0.45, False)])
def test_it_gains_where_it_is_right_more_often_than_never_and_always(router, gains):
    figures = {"never": 0.5, "always": 0.4, "router": router}
    assert About(**json.loads(about()) | {"figures": figures}).gains is gains
    assert not About(**json.loads(about()) | {"figures": {}}).gains
