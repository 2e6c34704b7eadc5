"""Pruning leaves two of each four weights, in files that vLLM loads as any other."""

import json

import pytest

from khmer_assets.compression import prune
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal


@pytest.mark.slow
def test_two_of_four_weights_are_zero_and_the_same_model_comes_out_again(calibration, tmp_path):
    spec = prune.Spec(ratio=0.5, **calibration)
    run = PayloadRun(tmp_path / "first")
    figures = prune.main(spec, run)

    assert figures == {
        "layers": 14,
        "zeros_min": 0.5,
        "zeros_max": 0.5,
        "groups_broken": 0,
        "sparsity_config": False,
        "merged_model": spec.model.name,
    }
    weight = load_model(run.output).model.layers[1].mlp.down_proj.weight
    assert ((weight.reshape(-1, 4) == 0).sum(1) == 2).all()
    assert json.loads((run.output / "config.json").read_text())["dtype"] == "bfloat16"
    again = PayloadRun(tmp_path / "second")
    prune.main(spec, again)
    for file in run.output.iterdir():
        assert file.read_bytes() == (again.output / file.name).read_bytes()


def test_a_dense_model_is_told_apart(model):
    figures = prune.structure(load_model(model))
    assert figures["zeros_max"] < 0.01
    assert figures["groups_broken"] > 0


def test_another_ratio_than_one_half_is_refused(calibration, tmp_path):
    with pytest.raises(Refusal, match=r"0\.4.*set 0\.5"):
        prune.main(prune.Spec(ratio=0.4, **calibration), PayloadRun(tmp_path))
