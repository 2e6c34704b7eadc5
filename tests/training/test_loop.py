"""Training: it learns, it resumes exactly, and what it measures is what the mathematics says."""

import numpy as np
import pytest
import torch

from khmer_assets.pretraining.decoder import Decoder, new_model
from khmer_assets.pretraining.packing import PackedSequences
from khmer_assets.recipe import SAMPLE_RECIPE, Recipe
from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from khmer_assets.training import models as models
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


def learn(settings, tokenizer, work, steps, stop_after=None, dropout=0.0, change=lambda model: None):
    """The loss curve of `steps` steps; `stop_after` kills the run in the middle of that step."""
    model = new_model(settings.decoder, settings.context_length, tokenizer, seed=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    change(model)
    stream = np.concatenate([np.asarray(tokenizer(text)["input_ids"], dtype=np.uint32) for text in TEXT])
    sequences = PackedSequences(stream, settings.context_length, settings.batch_size, seed=1)

    def batch(step):
        if step == stop_after:
            raise KeyboardInterrupt
        ids = torch.from_numpy(sequences.batch(step))
        return [{"input_ids": ids, "labels": ids}]

    schedule = Schedule(SETTINGS, steps=steps)
    return [point["loss"] for point in train(model, batch, schedule, PayloadRun(work)).curve]


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
def test_a_loss_that_is_no_number_is_refused_with_what_to_change(settings, tokenizer, tmp_path):
    def broken(model):
        model.get_input_embeddings().weight.data.fill_(float("nan"))

    with pytest.raises(Refusal, match=r"not a number; lower learning_rate \(0.004\) or raise warmup_ratio \(0.1\)"):
        learn(settings, tokenizer, tmp_path, 5, change=broken)


def test_the_learning_rate_rises_and_falls_to_zero():
    schedule = Schedule(SETTINGS.model_copy(update={"learning_rate": 0.1, "warmup_ratio": 0.2}), steps=10)
    assert schedule.learning_rate_at(0.1) == pytest.approx(0.05)
    assert schedule.learning_rate_at(0.2) == pytest.approx(0.1)
    assert schedule.learning_rate_at(1.0) == 0
