"""Pruning leaves two of each four weights, in files that vLLM loads as any other."""

import json
import shutil

import pytest

from khmer_assets.compression import prune
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal
from tests.tiny_model import save_tiny_model


@pytest.mark.slow
def test_two_of_four_weights_are_zero_and_the_same_model_comes_out_again(calibration, tmp_path):
    spec = prune.Spec(recovery_steps=2, **calibration)
    run = PayloadRun(tmp_path / "first")
    figures = prune.main(spec, run)

    assert {name: figures[name] for name in ("layers", "groups_broken", "sparsity_config", "merged_model")} == {
        "layers": 14,
        "groups_broken": 0,
        "sparsity_config": False,
        "merged_model": spec.model.name,
    }
    assert figures["zeros_min"] == 0.5
    assert figures["zeros_max"] < 0.501  # a weight that training has moved to zero
    assert json.loads((run.output / "config.json").read_text())["dtype"] == "bfloat16"
    assert not any("parametrizations" in name for name in load_model(run.output).state_dict())
    again = PayloadRun(tmp_path / "second")
    again.state.mkdir(exist_ok=True)
    shutil.copytree(run.state / "1-of-4", again.state / "1-of-4")  # as after a kill
    logged: list[str] = []
    again.log = logged.append
    prune.main(spec, again)
    assert "pruning to 2:4" in logged and "pruning to 1:4" not in logged
    for file in run.output.iterdir():
        assert file.read_bytes() == (again.output / file.name).read_bytes()


def test_rows_that_do_not_divide_into_fours_are_refused(calibration, tmp_path):
    calibration["model"] = save_tiny_model(tmp_path / "model", intermediate_size=510)
    with pytest.raises(Refusal, match="rows of 510 weights"):
        prune.main(prune.Spec(recovery_steps=0, **calibration), PayloadRun(tmp_path))


def test_a_dense_model_is_told_apart(model):
    figures = prune.structure(load_model(model))
    assert figures["zeros_max"] < 0.01
    assert figures["groups_broken"] > 0
