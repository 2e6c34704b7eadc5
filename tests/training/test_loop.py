"""Training: it learns, it resumes exactly, and what it measures is what the mathematics says."""

import resource
from functools import partial

import numpy as np
import pytest
import torch

from khmer_assets.foundation import environments
from khmer_assets.foundation.files import in_turn
from khmer_assets.pretraining.decoder import Decoder, new_model
from khmer_assets.pretraining.packing import PackedSequences
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from khmer_assets.training import hardware
from khmer_assets.training import models as models
from khmer_assets.training.engines import micro_batch_size
from khmer_assets.training.loop import Schedule, train
from khmer_assets.training.settings import TrainingSettings
from resources.payload import PayloadRun, Refusal

DECODER = Decoder(
    architecture="qwen3", hidden_size=32, intermediate_size=64, layers=2, attention_heads=4, key_value_heads=2
)
SETTINGS = TrainingSettings(
    learning_rate=0.004, warmup_ratio=0.1, weight_decay=0.1, batch_size=2, checkpoint_every=4, precision="float32"
)
TEXT = ["ផ្ទះរបស់ខ្ញុំនៅជិតទន្លេ។", "យាយចម្អិនបាយសម្រាប់ចៅៗ។", "My house is near the river."] * 30


@pytest.fixture(scope="module")
def tokenizer():
    return wrap(train_bpe(TEXT, 400))


@pytest.fixture(params=["qwen3", "qwen2", "llama", "gpt2"])
def settings(request):
    return Recipe.load(SAMPLE_RECIPE).pretraining.model_copy(
        update={
            "decoder": DECODER.model_copy(update={"architecture": request.param}),
            "context_length": 16,
            "batch_size": 2,
        }
    )


def learn(settings, tokenizer, work, steps, **how):
    """The loss curve of `steps` steps."""
    return [point["loss"] for point in trained(settings, tokenizer, work, steps, **how)[1].curve]


def trained(
    settings,
    tokenizer,
    work,
    steps,
    stop_after=None,
    dropout=0.0,
    change=lambda model: None,
    evaluate=None,
    before_step=lambda step: None,
    **training,
):
    """The model and the result of `steps` steps; `stop_after` kills the run in the middle of that step."""
    training = SETTINGS.model_copy(update=training)
    model = new_model(settings.decoder, settings.context_length, tokenizer, seed=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    change(model)
    stream = np.concatenate([np.asarray(tokenizer(text)["input_ids"], dtype=np.uint32) for text in TEXT])
    sequences = PackedSequences(stream, settings.context_length, settings.batch_size, seed=1)

    def batch(step):
        before_step(step)
        if step == stop_after:
            raise KeyboardInterrupt
        ids = torch.from_numpy(sequences.batch(step))
        return [{"input_ids": part, "labels": part} for part in torch.split(ids, micro_batch_size(training))]

    losses = partial(evaluate, model) if evaluate else None
    return model, train(model, batch, Schedule(training, steps), PayloadRun(work), losses)


def test_every_architecture_learns(settings, tokenizer, tmp_path):
    losses = learn(settings, tokenizer, tmp_path, 30)
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1


def test_a_stopped_run_goes_on_to_the_same_losses(settings, tokenizer, tmp_path):
    whole = learn(settings, tokenizer, tmp_path / "whole", 14)
    for stop in (6, 11):
        with pytest.raises(KeyboardInterrupt):
            learn(settings, tokenizer, tmp_path / "stopped", 14, stop_after=stop)
    assert learn(settings, tokenizer, tmp_path / "stopped", 14) == whole


@pytest.mark.parametrize("settings", ["gpt2"], indirect=True)
def test_dropout_goes_on_too_from_a_checkpoint_of_an_accelerator(settings, tokenizer, tmp_path, monkeypatch):
    whole = learn(settings, tokenizer, tmp_path / "whole", 8, dropout=0.2)
    assert whole != learn(settings, tokenizer, tmp_path / "without", 8)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")  # as it is saved on a GPU
        learn(settings, tokenizer, tmp_path / "stopped", 8, stop_after=6, dropout=0.2)
    assert learn(settings, tokenizer, tmp_path / "stopped", 8, dropout=0.2) == whole


@pytest.mark.parametrize("settings", ["llama"], indirect=True)
def test_a_full_disk_ends_it_with_what_to_do_and_it_goes_on_afterwards(settings, tokenizer, tmp_path):
    whole = learn(settings, tokenizer, tmp_path / "whole", 8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filled(step):
        if step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # writes end halfway, as on a full disk

    try:
        with pytest.raises(Refusal, match=r"checkpoint of step 8 cannot be written to .*; free some disk there"):
            learn(settings, tokenizer, tmp_path / "full", 8, before_step=filled)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in (tmp_path / "full" / "state").iterdir()] == ["checkpoint.pt"]
    assert learn(settings, tokenizer, tmp_path / "full", 8) == whole


@pytest.mark.parametrize("settings", ["llama"], indirect=True)
def test_a_loss_that_is_no_number_is_refused_with_what_to_change(settings, tokenizer, tmp_path):
    def broken(model):
        model.get_input_embeddings().weight.data.fill_(float("nan"))

    with pytest.raises(Refusal, match=r"not a number; lower learning_rate \(0.004\) or raise warmup_ratio \(0.1\)"):
        learn(settings, tokenizer, tmp_path, 5, change=broken)


@pytest.mark.parametrize("changes", [{"micro_batch_size": 1}, {"gradient_checkpointing": True}])
def test_what_saves_memory_changes_no_loss(changes, settings, tokenizer, tmp_path):
    losses = learn(settings, tokenizer, tmp_path / "saving", 8, **changes)
    assert losses == pytest.approx(learn(settings, tokenizer, tmp_path / "plain", 8), abs=1e-4)


WORSE_AFTER_6 = {2: 5.0, 4: 4.0, 6: 3.0, 8: 3.5, 10: 3.4, 12: 3.3, 14: 2.0}


@pytest.mark.parametrize("settings", ["qwen2"], indirect=True)
@pytest.mark.parametrize("stop_after", [None, 9])
def test_the_best_weights_are_kept_and_patience_has_an_end(settings, stop_after, tokenizer, tmp_path):
    weights = {}

    def evaluate(model, rank, count):
        assert not model.training
        step = 2 + max([step for step in WORSE_AFTER_6 if step in weights], default=0)
        weights[step] = {name: value.clone() for name, value in model.state_dict().items()}
        return 10 * WORSE_AFTER_6[step], 10

    how = {"evaluate": evaluate, "evaluate_every": 2, "patience": 3, "checkpoint_every": 100}
    if stop_after:
        with pytest.raises(KeyboardInterrupt):
            trained(settings, tokenizer, tmp_path, 14, stop_after=stop_after, **how)
    model, result = trained(settings, tokenizer, tmp_path, 14, **how)
    assert result.best_step == 6 and len(result.curve) == 12
    assert [point.get("validation_loss") for point in result.curve[1::2]] == list(WORSE_AFTER_6.values())[:6]
    assert all(torch.equal(value, weights[6][name]) for name, value in model.state_dict().items())
    assert [file.name for file in (tmp_path / "state").glob("best-*")] == ["best-6.pt"]


@pytest.mark.parametrize("settings", ["llama"], indirect=True)
def test_the_figures_are_those_of_the_training(settings, tokenizer, tmp_path, monkeypatch):
    told = {"gpu_celsius": 61.0, "gpu_load": 90.0, "gpu_watts": 3600.0}  # no GPU is needed for the sums
    monkeypatch.setattr(hardware, "sensors", lambda: told)
    model, result = trained(settings, tokenizer, tmp_path, 6)
    norms = [point["gradient_norm"] for point in result.curve]
    assert result.figures["clipped"] == np.mean([norm > 1 for norm in norms[1:]])
    state = {name: p.numel() for name, p in model.named_parameters()}
    embeddings_and_vectors = sum(n for name, n in state.items() if "embed" in name or "norm" in name)
    adamw_and_muon = 8 * embeddings_and_vectors + 4 * (sum(state.values()) - embeddings_and_vectors)
    assert result.figures["optimizer_mb"] * 2**20 == pytest.approx(adamw_and_muon, rel=0.01)
    assert (result.figures["hottest_celsius"], result.figures["gpu_load"]) == (61.0, 90.0)
    seconds = result.figures["energy_wh"]  # for 3,600 W
    assert seconds == pytest.approx(6 * 2 * 16 / result.figures["tokens_per_second"], rel=0.2)
    assert result.figures["tokens_per_second"] > 0 and result.figures["training_memory_mb"] > 0


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("linear", {0.6: 0.05, 0.9: 0.0125, 1.0: 0}),
        ("cosine", {0.6: 0.05, 0.9: 0.1 * (1 - np.cos(np.pi / 8)) / 2, 1.0: 0}),
        ("constant_then_decay", {0.6: 0.1, 0.8: 0.1, 0.9: 0.05, 1.0: 0}),
    ],
)
def test_after_the_warm_up_the_learning_rate_follows_its_schedule_to_zero(schedule, after):
    settings = SETTINGS.model_copy(update={"learning_rate": 0.1, "warmup_ratio": 0.2, "schedule": schedule})
    rates = {progress: Schedule(settings, steps=10).learning_rate_at(progress) for progress in (0.1, 0.2, *after)}
    assert rates == pytest.approx({0.1: 0.05, 0.2: 0.1, **after})


@pytest.mark.parametrize("settings", ["qwen3"], indirect=True)
def test_the_core_that_is_left_to_builds_is_taken_when_they_have_ended(
    settings, tokenizer, tmp_path, monkeypatch, request
):
    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    monkeypatch.setattr(environments, "VLLM", tmp_path)
    monkeypatch.setenv(environments.SPARED_CORE_VARIABLE, "1")
    monkeypatch.setattr(hardware, "cores", lambda: 3)
    torch.set_num_threads(2)
    with in_turn(tmp_path):  # as who builds it
        learn(settings, tokenizer, tmp_path / "meanwhile", 2)
        assert torch.get_num_threads() == 2
    learn(settings, tokenizer, tmp_path / "afterwards", 2)
    assert torch.get_num_threads() == 3
