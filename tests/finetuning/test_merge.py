"""Merging gives a model that is equal to base and adapter, and measures it honestly."""

import json
from pathlib import Path

import polars as pl
import pytest

from khmer_assets.finetuning import merge
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal
from tests.tiny_model import save_tiny_mixture, save_tiny_model


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    return save_tiny_mixture(tmp_path_factory.mktemp("mixture"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """A LoRA adapter that changes every layer."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(load_model(base), settings).save_pretrained(folder)
    return folder


def test_the_merged_model_is_equal_to_base_and_adapter(base, adapter, mixture, tmp_path):
    from transformers import AutoTokenizer

    run = PayloadRun(tmp_path)
    figures = merge.main(merge.Spec(base=base, adapter=adapter, texts=mixture, samples=4), run)

    assert figures["equal"] and figures["weights_rounded_once"]
    assert figures["float32_max_difference"] <= merge.FLOAT32_TOLERANCE * figures["largest_logit"]
    assert figures["bfloat16_max_difference"] > figures["float32_max_difference"]
    assert figures["bfloat16_top1_agreement"] > 0.9
    assert json.loads((run.output / "merge.json").read_text()) == figures
    assert json.loads((run.output / "base.json").read_text()) == {"chat_marks_are_new": False}
    assert AutoTokenizer.from_pretrained(run.output).get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()


def test_the_adapter_is_in_the_saved_weights(base, adapter, mixture, tmp_path):
    import torch
    from peft import PeftModel

    run = PayloadRun(tmp_path)
    merge.main(merge.Spec(base=base, adapter=adapter, texts=mixture, samples=1), run)

    layer = PeftModel.from_pretrained(load_model(base), adapter).base_model.model.model.layers[0].mlp.up_proj
    merged = load_model(run.output).model.layers[0].mlp.up_proj.weight
    expected = (layer.base_layer.weight + layer.get_delta_weight("default")).to(torch.bfloat16)
    assert torch.equal(merged.to(torch.bfloat16), expected)
    assert not torch.equal(merged, layer.base_layer.weight)


def test_an_adapter_of_another_model_is_refused(adapter, mixture, tmp_path):
    narrow = save_tiny_model(tmp_path / "narrow", hidden_size=128)
    with pytest.raises(Refusal, match="no adapter for the model"):
        merge.main(merge.Spec(base=narrow, adapter=adapter, texts=mixture, samples=1), PayloadRun(tmp_path))


def test_texts_without_a_held_out_one_are_refused(base, adapter, mixture, tmp_path):
    (tmp_path / "mixture").mkdir()
    train = pl.read_parquet(mixture / "data.parquet").filter(pl.col("split") == "train")
    train.write_parquet(tmp_path / "mixture" / "data.parquet")
    with pytest.raises(Refusal, match="validation"):
        merge.main(merge.Spec(base=base, adapter=adapter, texts=tmp_path / "mixture", samples=1), PayloadRun(tmp_path))


@pytest.mark.slow
def test_an_adapter_trained_on_four_bits_is_merged_into_sixteen(tmp_path):
    """Merging keeps what 16-bit base and adapter say; the 4 bits of the training are not in it."""
    import torch

    from khmer_assets.finetuning import sft
    from khmer_assets.finetuning.sft import Finetuning

    chats = [
        [{"role": "user", "content": f"តើក្រោយលេខ {n}?"}, {"role": "assistant", "content": f"គឺលេខ {n + 1}។"}]
        for n in range(24)
    ]
    said = [message["content"] for chat in chats for message in chat]
    four = save_tiny_model(tmp_path / "base", texts=said)
    (four / "base.json").write_text(json.dumps({"model": "tiny", "license": "mit", "chat_marks_are_new": True}))
    for name in ("chats", "texts"):
        (tmp_path / name).mkdir()
    pl.DataFrame({"messages": chats, "split": "train"}).write_parquet(tmp_path / "chats" / "data.parquet")
    template = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    asked = pl.DataFrame({"text": [template.format(chat[0]["content"]) for chat in chats], "split": "validation"})
    asked.write_parquet(tmp_path / "texts" / "data.parquet")
    settings = Finetuning(rank=8, alpha=16, dropout=0, learning_rate=0.01, warmup_ratio=0.1, batch_size=8, epochs=30,
                          checkpoint_every=100, quantization="nf4")  # fmt: skip
    trained = PayloadRun(tmp_path / "trained")
    sft.main(sft.Spec(base=four, chats=tmp_path / "chats", settings=settings, context_length=128, seed=1), trained)

    run = PayloadRun(tmp_path / "merged")
    figures = merge.main(merge.Spec(base=four, adapter=trained.output, texts=tmp_path / "texts", samples=24), run)
    assert figures["equal"] and figures["greedy_equal"]
    assert figures["nf4_greedy_agreement"] > 0.9
    assert figures["nf4_max_difference"] > figures["bfloat16_max_difference"]
    assert load_model(run.output, torch.bfloat16).dtype == torch.bfloat16
    record = json.loads((run.output / "base.json").read_text())
    assert record == {"model": "tiny", "license": "mit", "chat_marks_are_new": False}
