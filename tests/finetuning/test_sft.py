"""An adapter is trained on any base, says what became of the chats, and refuses what does not fit."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoTokenizer

from khmer_assets.finetuning import lora, memory, sft
from khmer_assets.finetuning.encoding import encode_chats
from khmer_assets.finetuning.sft import Finetuning
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal
from tests.tiny_model import save_tiny_model

CHAT = [
    {"role": "user", "content": "តើមេឃពណ៌អ្វី?"},
    {"role": "assistant", "content": "មេឃពណ៌ខៀវ។"},
    {"role": "user", "content": "អរគុណ"},
    {"role": "assistant", "content": "មិនអីទេ។"},
]
SETTINGS = Finetuning(
    rank=8,
    alpha=16,
    dropout=0,
    learning_rate=0.01,
    warmup_ratio=0,
    batch_size=4,
    epochs=15,
    checkpoint_every=100,
    precision="float32",
)


def save_chats(folder: Path, chats=(CHAT,), copies: int = 8) -> Path:
    folder.mkdir()
    rows = [{"messages": chat, "split": split} for split in ("train", "validation") for chat in chats] * copies
    pl.DataFrame(rows).write_parquet(folder / "data.parquet")
    return folder


@pytest.fixture
def chats(tmp_path) -> Path:
    return save_chats(tmp_path / "chats")


@pytest.fixture
def base(tmp_path) -> Path:
    return save_tiny_model(tmp_path / "model", texts=[message["content"] for message in CHAT])


def specified(base: Path, chats: Path, context_length: int = 128, **settings) -> sft.Spec:
    chosen = Finetuning.model_validate(SETTINGS.model_dump() | settings)
    return sft.Spec(base=base, chats=chats, settings=chosen, context_length=context_length, seed=1)


def ends_likely(base: Path, adapter: Path) -> float:
    """How likely the end of the chat is after its last word."""
    from peft import PeftModel

    tokenizer = AutoTokenizer.from_pretrained(base)
    [(ids, _)] = encode_chats(tokenizer, [CHAT], 128).examples
    with torch.inference_mode():
        logits = PeftModel.from_pretrained(load_model(base), adapter)(torch.tensor([ids])).logits[0]
    end = max(place for place, identity in enumerate(ids) if identity == tokenizer.eos_token_id)
    return float(logits[end - 1].softmax(-1)[tokenizer.eos_token_id])


@pytest.mark.slow
def test_the_end_of_a_turn_becomes_likely_for_a_model_that_has_never_seen_one(base, chats, tmp_path):
    likely = {}
    for known in (False, True):  # to a model that is said to know the marks, they are not taught
        (base / "base.json").write_text(json.dumps({"chat_marks_are_new": not known}))
        run = PayloadRun(tmp_path / f"{known}")
        sft.main(specified(base, chats), run)
        likely[known] = ends_likely(base, run.output)
    assert likely[False] > 0.9 > 2 * likely[True]


@pytest.mark.slow
def test_every_held_out_prompt_is_answered_to_an_end(tmp_path):
    from peft import PeftModel

    names = ["ដារា", "សុខា", "ចន្ទា", "បុប្ផា", "វិជ្ជា", "រតនា"]
    numbers = ["មួយ", "ពីរ", "បី", "បួន", "ប្រាំ"]
    asked = [(f"{name} មានត្រី{number}", f"{name} មាន{number}។") for name in names for number in numbers]
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in asked]
    base = save_tiny_model(tmp_path / "model", texts=[text for pair in asked for text in pair])
    folder = save_chats(tmp_path / "chats", [chat for number, chat in enumerate(chats) if number % 3], copies=1)
    run = PayloadRun(tmp_path / "work")
    sft.main(specified(base, folder, epochs=12), run)
    model = PeftModel.from_pretrained(load_model(base), run.output).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    for chat in chats[::3]:
        prompt = tokenizer.apply_chat_template(
            chat[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0].tolist()
        assert answer[-1] == tokenizer.eos_token_id


def test_a_base_in_four_bits_is_trained_and_what_became_of_the_chats_is_told(base, tmp_path):
    chats = save_chats(tmp_path / "chats", [CHAT, CHAT[:1], [{"role": "user", "content": "តើ" * 200}, CHAT[1]]])
    run = PayloadRun(tmp_path / "work")
    figures = sft.main(specified(base, chats, quantization="nf4", epochs=4, gradient_checkpointing=True), run)
    training = json.loads((run.output / "training.json").read_text())
    assert training["curve"][-1]["loss"] < 0.7 * training["curve"][0]["loss"]
    assert (training["quantization"], training["packed"]) == ("nf4", True)
    assert training["chats"]["train"]["trained"] == 8
    aside = training["chats"]["train"]["set_aside"]
    assert {rule: found["chats"] for rule, found in aside.items()} == {"no_answer": 8, "too_long": 8}
    assert figures["chats_set_aside"] == 32
    assert figures["validation_loss"] == pytest.approx(training["validation_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_and_head_can_be_trained_too(tied, chats, tmp_path):
    from peft import PeftModel

    base = save_tiny_model(tmp_path / "model", texts=[m["content"] for m in CHAT], tie_word_embeddings=tied)
    run = PayloadRun(tmp_path / "work")
    sft.main(specified(base, chats, train_embeddings=True, target_modules=["q_proj", "v_proj"], epochs=3), run)
    model = PeftModel.from_pretrained(load_model(base), run.output).merge_and_unload()
    before = load_model(base)
    assert not torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
    assert torch.equal(model.get_input_embeddings().weight, model.lm_head.weight) is tied


@pytest.mark.parametrize("train_embeddings", [False, True])
def test_an_open_base_is_held_in_bfloat16(train_embeddings, base, chats, tmp_path):
    (base / "base.json").write_text('{"chat_marks_are_new": true}')
    run = PayloadRun(tmp_path / "work")
    spec = specified(base, chats, precision="bfloat16", train_embeddings=train_embeddings, epochs=2)
    sft.main(spec, run)
    assert lora.load_base(base, "none", "bfloat16").dtype == torch.bfloat16
    assert lora.load_base(base, "none", "float32").dtype == torch.float32
    assert json.loads((run.output / "training.json").read_text())["packed"]


@pytest.mark.slow
def test_packed_and_micro_batched_it_learns_what_whole_batches_learn(base, chats, tmp_path):
    curves = []
    for size in (None, 1):
        run = PayloadRun(tmp_path / f"{size}")
        sft.main(specified(base, chats, micro_batch_size=size, epochs=2), run)
        curves.append([point["loss"] for point in json.loads((run.output / "training.json").read_text())["curve"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_text_is_learned_beside_the_chats_where_it_is_replayed(base, chats, tmp_path):
    from peft import PeftModel

    (tmp_path / "packed").mkdir()
    text = AutoTokenizer.from_pretrained(base)("ផ្ទះរបស់ខ្ញុំនៅជិតទន្លេ។ មេឃពណ៌ខៀវ។ " * 4)["input_ids"]
    np.array(text * 3, dtype="<u4").tofile(tmp_path / "packed" / "train.bin")
    losses = {}
    for share in (0.0, 0.5):
        spec = specified(base, chats, replay=share, epochs=6).model_copy(update={"packed": tmp_path / "packed"})
        run = PayloadRun(tmp_path / f"{share}")
        sft.main(spec, run)
        ids = torch.tensor([text])
        with torch.inference_mode():
            losses[share] = float(PeftModel.from_pretrained(load_model(base), run.output)(ids, labels=ids).loss)
    assert losses[0.5] < losses[0.0] - 1
    with pytest.raises(Refusal, match="no text of pretraining"):
        sft.main(specified(base, chats, replay=0.5), PayloadRun(tmp_path / "none"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 300}, "rank is 300, the narrowest adapted layer is 128"),
        ({"target_modules": ["wq"]}, "q_proj"),
        ({"batch_size": 64}, "fewer than finetuning.batch_size"),
        ({"context_length": 8}, "Set aside: 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, told, base, chats, tmp_path):
    with pytest.raises(Refusal, match=told):
        sft.main(specified(base, chats, **settings), PayloadRun(tmp_path / "work"))


def test_a_step_that_does_not_fit_the_memory_is_refused_before_the_first(base, chats, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(Refusal, match=r"micro_batch_size \(chats in memory at a time, now 4\), or turn on .*nf4"):
        sft.main(specified(base, chats), PayloadRun(tmp_path / "work"))


def test_a_folder_that_holds_no_model_or_anothers_tokenizer_is_refused(base, chats, tmp_path):
    other = save_tiny_model(tmp_path / "other", texts=["a b c"] * 2, vocab_size=260)
    with pytest.raises(Refusal, match="tokenizer"):
        AutoTokenizer.from_pretrained(base).save_pretrained(other)
        sft.main(specified(other, chats), PayloadRun(tmp_path / "work"))
    (base / "model.safetensors").unlink()
    with pytest.raises(Refusal, match="cannot be loaded"):
        sft.main(specified(base, chats), PayloadRun(tmp_path / "work"))
