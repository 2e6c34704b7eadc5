"""Chats that share a row are trained as if each had one of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from khmer_assets.finetuning.encoding import Example
from khmer_assets.finetuning.packing import chats_of_epoch, keeps_apart, micro_batches, packed, padded
from khmer_assets.training.models import IGNORED, autocast, load_model
from tests.tiny_model import save_tiny_model


def examples_of(lengths, seed=0):
    random = np.random.default_rng(seed)
    ids = [random.integers(3, 500, length).tolist() for length in lengths]
    return [Example(row, [IGNORED, *row[1:]]) for row in ids]


@pytest.fixture(scope="module", params=["qwen3", "qwen2", "llama", "gpt2"])
def model(request, tmp_path_factory):
    return load_model(save_tiny_model(tmp_path_factory.mktemp("model"), architecture=request.param)).eval()


@settings(max_examples=12)
@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=7))
def test_the_loss_is_that_of_chats_with_a_row_each(model, lengths):
    examples = examples_of(lengths)
    with torch.inference_mode():
        alone = model(**padded(examples, 0), use_cache=False).loss
        with keeps_apart(model, examples, "float32") as difference:
            assert difference is not None
            together = model(**packed(examples), use_cache=False).loss
    assert float(together) == pytest.approx(float(alone), abs=1e-3)


@pytest.mark.parametrize(("precision", "rounding"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_the_gradients_are_those_of_chats_with_a_row_each(model, precision, rounding):
    examples = examples_of([12, 30, 7])
    gradients = []
    with autocast(precision):
        with keeps_apart(model, examples, precision):
            model(**packed(examples), use_cache=False).loss.backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            model.zero_grad()
        model(**padded(examples, 0), use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            difference = (parameter.grad - gradients[0][name]).norm()
            assert difference <= rounding * parameter.grad.norm() + 1e-6, name
    model.zero_grad()


def test_nothing_is_padding_and_a_chats_first_token_is_not_learned_from_the_chat_before():
    examples = [Example([5, 6, 7], [5, 6, 7]), Example([8, 9], [8, 9])]
    inputs = {name: part.tolist() for name, part in packed(examples).items()}
    assert inputs == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "labels": [[IGNORED, 6, 7, IGNORED, 9]],
    }


def test_a_step_is_cut_into_micro_batches_of_similar_length():
    parts = micro_batches(examples_of([5, 40, 6, 39, 7]), 2)
    assert [[len(example.ids) for example in part] for part in parts] == [[40, 39], [7, 6], [5]]


def test_every_epoch_has_each_chat_once_in_an_order_of_its_own():
    steps = chats_of_epoch(9, 4, (1, 0))
    assert len(set(steps.ravel())) == 8
    assert np.array_equal(steps, chats_of_epoch(9, 4, (1, 0)))
    assert not np.array_equal(steps, chats_of_epoch(9, 4, (1, 1)))


def test_an_architecture_with_more_to_its_attention_is_left_as_it_was(tmp_path):
    folder = save_tiny_model(tmp_path, use_sliding_window=True, sliding_window=8, layer_types=["sliding_attention"] * 2)
    model = load_model(folder).eval()
    with keeps_apart(model, examples_of([30, 20]), "float32") as difference:
        assert difference is None
        assert model.config._attn_implementation == "sdpa"


def test_afterwards_the_model_has_its_own_attention(model):
    with keeps_apart(model, examples_of([30]), "float32"):
        assert model.config._attn_implementation == "chat_by_chat"
    assert model.config._attn_implementation == "sdpa"
