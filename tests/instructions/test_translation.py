"""English chats come back in Khmer, with a real small model of NLLB's kind; what is not sound is set aside."""

import json
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from khmer_assets.corpus.decontamination import Decontamination
from khmer_assets.instructions import translation
from khmer_assets.instructions.assets import instruction_assets
from khmer_assets.instructions.chat_sources import Instructions
from khmer_assets.instructions.translation import Spec, Translated, Translation, judged, main, parts, repetition
from khmer_assets.khmer.normalization import Normalization
from resources.payload import PayloadRun, Refusal
from resources.storage import FramesIOManager
from resources.teachers import Teachers

PAIRS = {
    "The cat sleeps.": "ឆ្មាដេក។",
    "I have [[1]] dogs.": "ខ្ញុំមានឆ្កែ [[1]] ក្បាល។",
    "What is it?": "តើនេះជាអ្វី?",
    "Stop it.": "stop it.",
    "Say it often.": "បាទបាទបាទបាទបាទបាទបាទបាទបាទបាទបាទ",
    "Call [[1]] now.": "ហៅឥឡូវ។",
}
CHATS = {
    "good": ("What is it?", "The cat sleeps.\n- I have 3 dogs. What is it?\n```\nprint(1)\n```"),
    "other_language": ("What is it?", "Stop it."),
    "repeated": ("What is it?", "Say it often."),
    "placeholder_lost": ("What is it?", "Call `f(x)` now."),
    "too_long": ("What is it?", "cat " * 300),
    "not_english": ("តើនេះជាអ្វី?", "ឆ្មា"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model of the M2M100 family that has learned `PAIRS` by heart, with a tokenizer of letters as NLLB's."""
    import torch
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    said = {letter for pair in PAIRS.items() for text in pair for letter in text}
    letters = ["▁", *sorted(said | set("print().`fx"))]
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = NllbTokenizer(vocab={token: number for number, token in enumerate([*special, *letters])}, merges=[])
    torch.manual_seed(0)
    config = M2M100Config(
        vocab_size=len(tokenizer), d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, dropout=0.0, attention_dropout=0.0,
        activation_dropout=0.0, encoder_layerdrop=0.0, decoder_layerdrop=0.0, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, decoder_start_token_id=2, max_position_embeddings=512,
    )  # fmt: skip
    net = M2M100ForConditionalGeneration(config)
    tokenizer.src_lang, tokenizer.tgt_lang = "eng_Latn", "khm_Khmr"
    batch = tokenizer(list(PAIRS), text_target=list(PAIRS.values()), padding=True, return_tensors="pt")
    labels = batch["labels"].masked_fill(batch["labels"] == 1, -100)
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for _ in range(150):
        loss = net(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    folder = tmp_path_factory.mktemp("nllb")
    net.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spec_of(model: Path, folder: Path) -> Spec:
    lines = [{"instruction": asked, "output": answer, "category": name} for name, (asked, answer) in CHATS.items()]
    (folder / "english.jsonl").write_text("\n".join([*map(json.dumps, lines), "{}"]))
    settings = Translated.model_validate({"model": str(model), "path": str(folder / "english.jsonl")})
    return Spec(sources={"english": settings}, normalization=Normalization())


@pytest.mark.slow
def test_chats_are_translated_and_what_is_not_sound_is_set_aside(model, tmp_path, monkeypatch):
    spec, run = spec_of(model, tmp_path), PayloadRun(tmp_path / "work")
    figures = main(spec, run)
    rows = {row["category"]: row for row in pl.read_parquet(run.output / translation.ROWS).to_dicts()}
    assert {name: row["rule"] for name, row in rows.items()} == {
        "english": "unreadable", "good": None, **{name: name for name in CHATS if name != "good"}
    }  # fmt: skip
    question, answer = (message["content"] for message in rows["good"]["messages"])
    assert (question, rows["good"]["language"]) == ("តើនេះជាអ្វី?", "khm")
    assert answer == "ឆ្មាដេក។\n- ខ្ញុំមានឆ្កែ 3 ក្បាល។ តើនេះជាអ្វី?\n```\nprint(1)\n```"
    assert rows["placeholder_lost"]["messages"][1]["content"] == "Call `f(x)` now.", "what is set aside stays English"
    float32 = (model / "model.safetensors").stat().st_size
    assert figures["english_model_bytes"] < 0.7 * float32, "most weights have 8 bits"

    # killed while it wrote a line: goes on with what is written, and translates no sentence again
    kept = run.state / "english.jsonl"
    kept.write_bytes(kept.read_bytes()[:-10])
    asked: list[list[str]] = []
    translate = translation._Model.translate
    monkeypatch.setattr(
        translation._Model, "translate", lambda self, texts: asked.append(list(texts)) or translate(self, texts)
    )
    again = PayloadRun(tmp_path / "work")
    main(spec, again)
    assert [len(batch) for batch in asked] == [1]
    assert {row["category"]: row for row in pl.read_parquet(again.output / translation.ROWS).to_dicts()} == rows


@pytest.mark.slow
def test_translated_chats_go_into_the_dataset(model, tmp_path):
    from tests.e2e.test_recipes import Here  # loads the whole graph

    (source,) = spec_of(model, tmp_path).sources.values()
    entry = {"name": "english", "kind": "translated", "license": "x", "settings": source.model_dump()}
    settings = Instructions.model_validate({"sources": [entry], "split": {"train": 1, "validation": 0, "test": 0}})
    parts = instruction_assets(settings, Decontamination(), tmp_path, Normalization(), False, 1)
    frames = FramesIOManager(root=str(tmp_path / "store"), cache=str(tmp_path / "cache"))
    resources = {"frames": frames, "compute": Here(home=str(tmp_path)), "teachers": Teachers(home=str(tmp_path))}
    assert dg.materialize(parts, resources=resources).success
    (chat,) = pl.read_parquet(frames.store.current("chat_dataset") / "data.parquet").to_dicts()
    assert (chat["source"], chat["language"], chat["category"]) == ("english", "khm", "good")
    aside = pl.read_parquet(frames.store.current("translated_instructions") / "removed.parquet")
    assert set(aside["rule"]) == {"unreadable", *CHATS} - {"good"}


@pytest.mark.parametrize(
    "text",
    ["", "One. Two!\n\n  - three\n1. four\n```py\nx = 1\n```\nfive `a`", "|---|\n***\n...", "```\nopen", "a\r\nb\n"],
)
def test_parts_are_the_text(text):
    assert "".join(part for part, _ in parts(text)) == text
    assert not any(translates for part, translates in parts(text) if "```" in part)


@pytest.mark.parametrize(
    ("translated", "rule"),
    [
        (Translation("ខ្ញុំមានឆ្កែ [[1]]", 9, True), None),
        (Translation("ខ្ញុំមានឆ្កែ [[1]]", 256, False), "cut_off"),
        (Translation("", 300, False), "too_long"),
        (Translation("I have [[1]] ឆ្កែ", 9, True), "other_language"),
        (Translation("", 2, True), "other_language"),
        (Translation("ឆ្កែ [[1]] " + "ឆ្កែធំ" * 20, 90, True), "repeated"),
        (Translation("ខ្ញុំមានឆ្កែ", 9, True), "placeholder_lost"),
    ],
)
def test_a_translation_is_judged(translated, rule):
    found = judged("I have [[1]] dogs", translated, 1)
    assert (found and found[0]) == rule


def test_ordinary_text_repeats_little():
    assert repetition("ថ្ងៃនេះមេឃភ្លៀងខ្លាំងណាស់ ដូច្នេះកុមារៗមិនអាចលេងនៅខាងក្រៅបានទេ។") < 0.1
    assert repetition("ខ្លី") == 0


@pytest.mark.slow
def test_what_is_no_translation_model_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(Refusal, match="cannot be read as a translation model"):
        main(spec_of(tmp_path / "model", tmp_path), PayloadRun(tmp_path / "work"))
