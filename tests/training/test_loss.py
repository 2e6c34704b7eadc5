"""The loss of label tokens alone, in parts where the logits are many, is the loss of the whole."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from khmer_assets.training import held_out, models
from khmer_assets.training.loss import TokenLoss, label_tokens
from khmer_assets.training.models import IGNORED
from tests.tiny_model import save_tiny_model


def gradients_and_loss(model, loss):
    model.zero_grad()
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def ids():
    return torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(ids):
    return torch.where(ids % 3 == 0, IGNORED, ids)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gpt2"])
@pytest.mark.parametrize("tokens_at_once", [1, 7, 1000])
def test_loss_and_gradients_are_transformers_own(
    architecture, adapter, tokens_at_once, ids, labels, tmp_path, monkeypatch
):
    folder = save_tiny_model(tmp_path, architecture=architecture, tie_word_embeddings=architecture != "llama")
    model = models.load_model(folder).eval()
    monkeypatch.setattr(held_out, "LOGITS_AT_ONCE", tokens_at_once * model.config.vocab_size)
    if adapter:
        settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, trainable_token_indices=[1])
        model = get_peft_model(model, settings).eval()
    expected, expected_gradients = gradients_and_loss(model, model(input_ids=ids, labels=labels).loss)
    positions, targets = label_tokens(labels)
    loss = TokenLoss(model, "float32")
    assert loss.head is not None
    found, gradients = gradients_and_loss(model, loss(positions, targets, input_ids=ids) / len(targets))
    assert found == pytest.approx(expected, rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-5)


def test_a_model_that_bounds_its_logits_is_asked_as_a_whole(ids, labels):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    config = Gemma2Config(**sizes, num_attention_heads=4, num_key_value_heads=4, final_logit_softcapping=0.1)
    model = Gemma2ForCausalLM(config).eval()
    loss = TokenLoss(model, "float32")
    assert loss.head is None
    positions, targets = label_tokens(labels)
    expected = float(model(input_ids=ids, labels=labels).loss.detach())
    assert float(loss(positions, targets, input_ids=ids).detach()) / len(targets) == pytest.approx(expected, rel=1e-5)


def test_a_token_has_its_label_before_it_and_not_in_the_next_row():
    positions, targets = label_tokens(torch.tensor([[5, 6, IGNORED], [7, IGNORED, 8]]))
    assert positions.tolist() == [0, 4] and targets.tolist() == [6, 8]
