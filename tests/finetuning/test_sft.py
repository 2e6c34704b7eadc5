"""The loss is on the assistant's words and nothing else."""

import numpy as np
import pytest

from khmer_assets.finetuning.sft import IGNORED, batches_of_epoch, encode_chats
from khmer_assets.tokenizer.train import train_bpe, wrap

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
