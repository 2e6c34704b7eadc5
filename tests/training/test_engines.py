"""Many processes train as one does; what kills one of them ends all, and any number of them goes on."""

import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import dagster as dg
import psutil
import pytest

from khmer_assets.finetuning import lora
from khmer_assets.foundation.home import PROJECT
from khmer_assets.training.engines import Engine
from khmer_assets.training.settings import TrainingSettings
from resources import compute
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


def trained(home: Path, launch: str | int, **spec) -> dg.ExecuteInProcessResult:
    """The tiny training as an asset, with this `launch` of its processes."""

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


@pytest.mark.parametrize("launch", ["0", "no_such_program --nodes 2", "srun 'half"])
def test_a_launch_that_starts_nothing_is_refused(launch):
    with pytest.raises(dg.Failure, match='expected "auto", a number of processes, or a command'):
        compute._command(tiny_training.__name__, launch)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[TrainingSettings], dict]:
    """What one process comes to; whatever is sharded, that is the same."""

    @cache
    def of(sharded: bool) -> dict:
        home = tmp_path_factory.mktemp("alone")
        sharding = "zero2" if sharded else "none"
        assert trained(
            home, 1, settings=SETTINGS.model_copy(update={"sharding": sharding, "evaluate_every": 10})
        ).success
        return result(home)

    return lambda settings: of(settings.sharding != "none")


def two_machines(folder: Path) -> str:
    """A launch of two torchruns of a process each, which meet on a port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"--nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port {free.getsockname()[1]}"
    torchrun = f"{shlex.quote(sys.executable)} -m torch.distributed.run {meeting}"
    script = folder / "machines.sh"
    script.write_text(f'{torchrun} --node-rank 1 "$@" & {torchrun} --node-rank 0 "$@" && wait $!')
    return f"sh {shlex.quote(str(script))}"


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "zero2", "zero3"])
def test_two_processes_have_the_losses_of_one(sharding, alone, tmp_path):
    settings = SETTINGS.model_copy(update={"sharding": sharding, "evaluate_every": 10})
    spec = {"settings": settings, "breaks_once": 12 if sharding == "zero3" else None}
    launch = two_machines(tmp_path) if sharding == "none" else "2"
    if sharding == "zero3":
        assert not trained(tmp_path / "two", launch, **spec).success
        shutil.copytree(tmp_path / "two", tmp_path / "one")
        assert trained(tmp_path / "one", "1", **spec).success  # goes on alone
        are_alike(alone(settings), result(tmp_path / "one"))
    assert trained(tmp_path / "two", launch, **spec).success
    one, two = alone(settings), result(tmp_path / "two")
    are_alike(one, two)
    share = two["optimizer_mb_1"] / one["optimizer_mb"]
    assert share == pytest.approx(1 if sharding == "none" else 0.5, abs=0.01)


def are_alike(one: dict, other: dict) -> None:
    """The losses, gradients and weights of two trainings."""
    for measure in ("loss", "gradient_norm"):
        measured = [point[measure] for point in one["curve"]]
        assert [point[measure] for point in other["curve"]] == pytest.approx(measured, abs=1e-3)
    assert other["weight"] == pytest.approx(one["weight"], rel=1e-4)
    assert other["curve"][-1]["validation_loss"] == pytest.approx(one["curve"][-1]["validation_loss"], abs=1e-3)


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
