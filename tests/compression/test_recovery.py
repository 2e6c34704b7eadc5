"""Training after pruning brings a model nearer to the whole one, and what was removed stays zero."""

import copy

import torch

from khmer_assets.compression.calibration import compressible_layers
from khmer_assets.compression.recovery import recover
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun


def pruned_by_half(model):
    for layer in compressible_layers(model).values():
        weight = layer.weight.data.reshape(-1, 4)
        weight.scatter_(1, weight.abs().topk(2, largest=False).indices, 0)
    return model


def row(ids: list[int]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(len(ids))[None]}


def apart(model, whole, read: dict[str, torch.Tensor]) -> float:
    with torch.inference_mode():
        logits, wanted = (one(**read).logits.float() for one in (model, whole))
    return float(torch.nn.functional.kl_div(logits.log_softmax(-1), wanted.log_softmax(-1), log_target=True))


def test_what_is_pruned_stays_zero_and_the_model_comes_nearer(model, tmp_path):
    whole = load_model(model)
    rows = [row([(7 * place + start) % 500 for place in range(24)]) for start in range(6)]
    pruned = pruned_by_half(copy.deepcopy(whole))
    before = apart(pruned, whole, rows[0])
    zeros = {name: layer.weight == 0 for name, layer in compressible_layers(pruned).items()}
    embedding = pruned.get_input_embeddings().weight.clone()

    recover(pruned, whole, compressible_layers(pruned), rows, 6, 1, PayloadRun(tmp_path))

    assert apart(pruned, whole, rows[0]) < 0.7 * before
    for name, layer in compressible_layers(pruned).items():
        assert bool((layer.weight[zeros[name]] == 0).all())
        assert isinstance(layer.weight, torch.nn.Parameter)
    assert torch.equal(pruned.get_input_embeddings().weight, embedding)


def test_the_seed_decides_how_it_is_trained(model, tmp_path):
    whole = load_model(model)
    found = []
    for seed in (1, 1, 2):
        pruned = pruned_by_half(copy.deepcopy(whole))
        recover(pruned, whole, compressible_layers(pruned), [row([5, 6, 7, 8])], 2, seed, PayloadRun(tmp_path))
        found.append(pruned.model.layers[0].mlp.up_proj.weight)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
