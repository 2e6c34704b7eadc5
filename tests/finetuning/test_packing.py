"""Chats that share a row are trained as if each had one of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.finetuning.encoding import IGNORED, Example
from khmer_assets.finetuning.packing import can_pack, chats_of_epoch, micro_batches, packed, padded, rows_of
from khmer_assets.training.models import load_model
from tests.tiny_model import save_tiny_model

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=7)


def examples_of(lengths, seed=0):
    random = np.random.default_rng(seed)
    ids = [random.integers(3, 500, length).tolist() for length in lengths]
    return [Example(row, [IGNORED, *row[1:]]) for row in ids]


@pytest.fixture(scope="module", params=["qwen3", "qwen2", "llama", "gpt2"])
def model(request, tmp_path_factory):
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model"), architecture=request.param)).eval()


@settings(max_examples=12, deadline=None)
@given(lengths=LENGTHS)
def test_the_loss_is_that_of_chats_with_a_row_each(model, lengths):
    examples = examples_of(lengths)
    with torch.inference_mode():
        together = model(**packed(examples, 0), use_cache=False).loss
        alone = model(**padded(examples, 0), use_cache=False).loss
    assert float(together) == pytest.approx(float(alone), abs=1e-3)


@given(lengths=LENGTHS)
def test_every_token_is_in_one_row_at_its_own_place(lengths):
    examples = examples_of(lengths)
    inputs = packed(examples, 0)
    assert sorted(place for row in rows_of(lengths) for place in row) == list(range(len(lengths)))
    assert inputs["input_ids"].shape[1] == max(lengths)
    assert sum(map(sum, (example.ids for example in examples))) == int(inputs["input_ids"].sum())
    assert int((inputs["labels"] != IGNORED).sum()) == sum(lengths) - len(lengths)


def test_short_chats_fill_the_rows_of_long_ones():
    assert rows_of([50, 10, 20, 20, 48]) == [[0], [4], [2, 3, 1]]


def test_a_step_is_cut_into_micro_batches_of_similar_length():
    parts = micro_batches(examples_of([5, 40, 6, 39, 7]), 2)
    assert [[len(example.ids) for example in part] for part in parts] == [[40, 39], [7, 6], [5]]


def test_every_epoch_has_each_chat_once_in_an_order_of_its_own():
    steps = chats_of_epoch(9, 4, (1, 0))
    assert len(set(steps.ravel())) == 8
    assert np.array_equal(steps, chats_of_epoch(9, 4, (1, 0)))
    assert not np.array_equal(steps, chats_of_epoch(9, 4, (1, 1)))


def test_a_model_that_looks_past_the_border_of_a_chat_is_found(model):
    examples = examples_of([30, 20])
    assert can_pack(model, examples)[0]

    class Leaks:
        dtype, device = model.dtype, model.device

        def __call__(self, input_ids, use_cache, position_ids=None):
            return model(input_ids=input_ids, use_cache=use_cache)

    assert not can_pack(Leaks(), examples)[0]
