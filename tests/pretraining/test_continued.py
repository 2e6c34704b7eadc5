"""Continued training: new rows learn first and faster, and the last steps are averaged."""

import pytest
import torch

from khmer_assets.pretraining.continued import Continued, ContinuedOptimizer
from khmer_assets.training.models import load_model

FIRST_NEW = 500
IDS = torch.tensor([[5, 501, 7, 505, 9, 510, 11, 502]])


def learn(model, settings, steps, first_new=FIRST_NEW, total=10, rate=1e-3):
    optimizer = ContinuedOptimizer(model, settings, first_new, total)
    go_on(model, optimizer, steps, rate)
    return optimizer


def go_on(model, optimizer, steps, rate=1e-3):
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step(rate)


def state(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(params=["qwen3", "llama"], ids=["tied", "untied"])
def loaded(request, tmp_path):
    from tests.tiny_model import save_tiny_model

    tied = request.param == "qwen3"
    return load_model(save_tiny_model(tmp_path, architecture=request.param, tie_word_embeddings=tied))


def rows_of(model):
    return {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}


def test_the_new_rows_learn_alone_at_first(loaded):
    before = state(loaded)
    learn(loaded, Continued(new_rows_first=0.5, averaged=0), 5)
    rows = {id(p) for p in rows_of(loaded).values()}
    for name, parameter in loaded.named_parameters():
        if id(parameter) in rows:
            assert torch.equal(parameter[:FIRST_NEW], before[name][:FIRST_NEW])
            assert not torch.equal(parameter[FIRST_NEW:], before[name][FIRST_NEW:])
        else:
            assert torch.equal(parameter, before[name])


def test_then_all_weights_learn_the_new_rows_faster(loaded):
    before = state(loaded)
    learn(loaded, Continued(new_rows_first=0, new_rows_rate=10, averaged=0), 1)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in loaded.named_parameters())
    for weight in rows_of(loaded).values():
        [name] = [name for name, parameter in loaded.named_parameters() if parameter is weight]
        moved = (weight - before[name]).detach().abs()
        assert moved[FIRST_NEW:].max() == pytest.approx(10 * float(moved[:FIRST_NEW].max()), rel=0.01)


def test_a_model_without_new_rows_learns_from_the_first_step(loaded):
    before = state(loaded)
    learn(loaded, Continued(new_rows_first=0.5), 1, first_new=512)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in loaded.named_parameters())


def test_the_model_gets_the_mean_of_the_last_steps(loaded):
    optimizer = ContinuedOptimizer(loaded, Continued(averaged=0.3), FIRST_NEW, 10)
    seen = []
    for _ in range(10):
        go_on(loaded, optimizer, 1)
        seen.append(state(loaded))
    optimizer.finish()
    for name, parameter in loaded.named_parameters():
        assert torch.allclose(parameter, torch.stack([one[name] for one in seen[-3:]]).mean(0), atol=1e-6)


def test_without_averaging_the_last_step_stands(loaded):
    optimizer = learn(loaded, Continued(averaged=0), 10)
    last = state(loaded)
    optimizer.finish()
    assert all(torch.equal(parameter, last[name]) for name, parameter in loaded.named_parameters())


def test_a_stopped_run_goes_on_to_the_same_weights(loaded):
    settings = Continued(new_rows_first=0.2, averaged=0.5)
    at_first = state(loaded)
    learn(loaded, settings, 10).finish()
    whole = state(loaded)
    restore(loaded, at_first)
    stopped = learn(loaded, settings, 7).state_dict()
    optimizer = ContinuedOptimizer(loaded, settings, FIRST_NEW, 10)
    optimizer.load_state_dict(stopped)
    go_on(loaded, optimizer, 3)
    optimizer.finish()
    assert all(torch.equal(parameter, whole[name]) for name, parameter in loaded.named_parameters())


def restore(model, weights):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
