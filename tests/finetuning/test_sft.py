"""The loss is on the assistant's words and nothing else."""

import numpy as np
import polars as pl
import pytest
from transformers import AutoTokenizer

from khmer_assets.finetuning import sft
from khmer_assets.finetuning.sft import IGNORED, Finetuning, batches_of_epoch, encode_chats
from khmer_assets.tokenizer.bpe import train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from resources.payload import PayloadRun
from tests.tiny_model import save_tiny_model

CHAT = [
    {"role": "user", "content": "តើមេឃពណ៌អ្វី?"},
    {"role": "assistant", "content": "មេឃពណ៌ខៀវ។"},
    {"role": "user", "content": "អរគុណ"},
    {"role": "assistant", "content": "មិនអីទេ។"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return wrap(train_bpe([message["content"] for message in CHAT] * 10, 500))


def test_labels_are_the_answers_with_the_end_of_each_turn(tokenizer):
    [(ids, labels)] = encode_chats(tokenizer, [CHAT], 512)
    spoken = [identity for identity in labels if identity != IGNORED]
    assert tokenizer.decode(spoken) == "មេឃពណ៌ខៀវ។<|im_end|>មិនអីទេ។<|im_end|>"
    assert all(label in (IGNORED, identity) for identity, label in zip(ids, labels, strict=True))


def test_ids_are_those_of_the_rendered_chat(tokenizer):
    [(ids, _)] = encode_chats(tokenizer, [CHAT], 512)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_a_chat_that_is_too_long_is_left_out(tokenizer):
    assert encode_chats(tokenizer, [CHAT], 5) == []


def test_batches_hold_chats_of_similar_length_and_each_chat_once():
    lengths = np.array([5, 90, 6, 91, 7, 92, 5, 93, 6])
    batches = batches_of_epoch(lengths, 4, (1, 0))
    assert sorted(np.ptp(lengths[batches], axis=1))[0] <= 2
    assert len(set(batches.ravel())) == 8
    assert not np.array_equal(batches, batches_of_epoch(lengths, 4, (1, 1)))


def test_the_end_of_a_turn_becomes_likely_for_a_model_that_has_never_seen_one(tmp_path):
    import torch
    from peft import PeftModel

    from khmer_assets.training.models import load_model

    model = save_tiny_model(tmp_path / "model", texts=[message["content"] for message in CHAT])
    (tmp_path / "chats").mkdir()
    chats = [{"messages": CHAT, "split": split} for split in ("train", "validation") for _ in range(8)]
    pl.DataFrame(chats).write_parquet(tmp_path / "chats" / "data.parquet")
    settings = Finetuning(
        rank=8, alpha=16, dropout=0, learning_rate=0.01, warmup_ratio=0, batch_size=4, epochs=15, checkpoint_every=100
    )
    likelihood = {}
    for new_to_chats in (False, True):
        run = PayloadRun(tmp_path / f"{new_to_chats}")
        spec = sft.Spec(
            base=model,
            chats=tmp_path / "chats",
            new_to_chats=new_to_chats,
            settings=settings,
            precision="float32",
            context_length=128,
            seed=1,
        )
        sft.main(spec, run)
        tokenizer = AutoTokenizer.from_pretrained(model)
        [(ids, _)] = encode_chats(tokenizer, [CHAT], 128)
        with torch.inference_mode():
            logits = PeftModel.from_pretrained(load_model(model), run.output)(torch.tensor([ids])).logits[0]
        end = max(place for place, identity in enumerate(ids) if identity == tokenizer.eos_token_id)
        likelihood[new_to_chats] = float(logits[end - 1].softmax(-1)[tokenizer.eos_token_id])
    assert likelihood[True] > 0.9 > 2 * likelihood[False]
