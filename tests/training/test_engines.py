"""Many processes train as one does; what kills one of them ends all, and any number of them goes on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest

from khmer_assets.finetuning import lora
from khmer_assets.foundation.home import PROJECT
from khmer_assets.training.engines import Engine
from khmer_assets.training.settings import TrainingSettings
from resources.compute import Compute
from resources.storage import FoldersIOManager, Store
from tests.tiny_model import save_tiny_model
from tests.training import tiny_training

SETTINGS = TrainingSettings(
    learning_rate=0.003,
    warmup_ratio=0.1,
    weight_decay=0.1,
    batch_size=8,
    micro_batch_size=3,  # three a step: the second process has none in the second turn
    max_gradient_norm=0.5,
    checkpoint_every=5,
    precision="float32",
)
STEPS = 20


def trained(home: Path, launch: int, **spec) -> dg.ExecuteInProcessResult:
    """The tiny training as an asset, on so many processes."""

    @dg.asset(io_manager_key="folders")
    def tiny(context: dg.AssetExecutionContext, compute: Compute) -> Iterator[dg.Output[Path]]:
        settings = {"settings": SETTINGS, "steps": STEPS, **spec}
        yield from compute.materialize(context, tiny_training.__name__, tiny_training.Spec(**settings))

    storage = FoldersIOManager(root=str(home / "store"), cache=str(home / "cache"))
    resources = {"compute": Compute(home=str(home), launch=str(launch)), "folders": storage}
    return dg.materialize([tiny], resources=resources, raise_on_error=False)


def result(home: Path) -> dict:
    return json.loads((Store(str(home / "store"), home).current("tiny") / "result.json").read_text())


def losses(home: Path) -> list[float]:
    return [point["loss"] for point in result(home)["curve"]]


def sharded(**changes) -> TrainingSettings:
    return SETTINGS.model_copy(update={"sharding": "zero2", **changes})


@pytest.mark.parametrize("evaluated", ["never", "before", "between"])
def test_gradients_flow_through_a_base_of_4_bits_though_it_was_evaluated(evaluated, tmp_path):
    import torch

    folder = save_tiny_model(tmp_path, architecture="qwen2")
    settings = lora.Lora(rank=4, alpha=8, dropout=0.0, quantization="nf4")
    torch.manual_seed(1)
    model = lora.adapted(lora.load_base(folder, "nf4", "float32"), settings, None)
    ids = torch.arange(5, 45)[None]

    def evaluate(when):
        if when == evaluated:
            with torch.no_grad():
                model.eval()(input_ids=ids)
            model.train()

    evaluate("before")
    engine = Engine(model, SETTINGS)
    engine.update([{"input_ids": ids, "labels": ids}], 1e-3)
    evaluate("between")
    former = {name: p.detach().clone() for name, p in engine.trainable().items()}
    engine.update([{"input_ids": ids, "labels": ids}], 1e-3)
    assert len(former) == 2 * 2 * 7
    assert not [name for name, p in engine.trainable().items() if torch.equal(p, former[name])]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "zero2"])
def test_two_processes_have_the_losses_of_one(sharding, tmp_path):
    settings = SETTINGS.model_copy(update={"sharding": sharding, "evaluate_every": 10})
    for launch in (1, 2):
        assert trained(tmp_path / str(launch), launch, settings=settings).success
    one, two = result(tmp_path / "1"), result(tmp_path / "2")
    for measure in ("loss", "gradient_norm"):
        measured = [point[measure] for point in one["curve"]]
        assert [point[measure] for point in two["curve"]] == pytest.approx(measured, abs=1e-3)
    assert two["weight"] == pytest.approx(one["weight"], rel=1e-4)
    assert one["curve"][-1]["validation_loss"] == pytest.approx(two["curve"][-1]["validation_loss"], abs=1e-3)
    share = two["optimizer_mb_1"] / one["optimizer_mb"]
    assert share == pytest.approx(0.5 if sharding == "zero2" else 1, abs=0.01)


@pytest.mark.slow
def test_a_refusal_of_any_process_is_told(tmp_path):
    data = trained(tmp_path, 2, refused_by=1).failure_data_for_node("tiny")
    assert data is not None and data.user_failure_data is not None
    assert data.user_failure_data.description == "given a bad text; expected a good one; change the catalogue"


def killed_in_the_middle(home: Path, chance: random.Random) -> None:
    """Start the training on two processes, kill one of its processes (the launcher included) some time after the
    first checkpoint, and wait until none is left."""
    script = (
        "import sys; from pathlib import Path; from tests.training.test_engines import *;"
        "trained(Path(sys.argv[1]), 2, settings=sharded(), dropout=0.1, seconds_a_step=0.1)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(home)], cwd=PROJECT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(home.rglob("checkpoint.pt")) and time.monotonic() < deadline and parent.poll() is None:
        time.sleep(0.02)
    time.sleep(chance.random() / 2)
    payloads = [p for p in psutil.Process(parent.pid).children(recursive=True) if "resources.payload" in p.cmdline()]
    assert len(payloads) == 3, "torchrun and two that it has started"
    os.kill(chance.choice(payloads).pid, signal.SIGKILL)
    parent.wait(60)
    _, left = psutil.wait_procs(payloads, timeout=20)
    assert not left


@pytest.mark.slow
def test_after_a_kill_two_or_one_go_on_to_the_same_losses(tmp_path):
    whole = {"settings": sharded(), "dropout": 0.1}
    assert trained(tmp_path / "whole", 2, **whole).success
    killed_in_the_middle(tmp_path / "two", random.Random())
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    for launch, name in enumerate(("one", "two"), start=1):
        assert trained(tmp_path / name, launch, **whole, seconds_a_step=0.1).success
    assert losses(tmp_path / "two") == losses(tmp_path / "whole")
    # one process alone drops out other channels than two
    assert losses(tmp_path / "one")[:5] == losses(tmp_path / "whole")[:5]
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "whole"), abs=0.2)
