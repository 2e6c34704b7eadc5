"""The extended model is the base, bit for bit, with rows for the new tokens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from khmer_assets.extension import embeddings, merges
from khmer_assets.extension.merges import Extension
from khmer_assets.tokenizer.bpe import QWEN2_PATTERN
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal
from tests.extension.conftest import save_base
from tests.tiny_model import ENGLISH_TEXTS

EMBEDDINGS = "model.embed_tokens.weight"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory) -> Path:
    return save_base(
        tmp_path_factory.mktemp("base"), QWEN2_PATTERN, "Qwen2Tokenizer", tie_word_embeddings=request.param
    )


@pytest.fixture(scope="module")
def tokenizer(base, mixture, tmp_path_factory) -> Path:
    run = PayloadRun(tmp_path_factory.mktemp("tokenizer"))
    merges.main(merges.Spec(base=base, mixture=mixture, settings=Extension(merges=40)), run)
    return run.output


@pytest.fixture(scope="module")
def extended(base, tokenizer, mixture, tmp_path_factory) -> Path:
    run = PayloadRun(tmp_path_factory.mktemp("extended"))
    embeddings.main(embeddings.Spec(base=base, tokenizer=tokenizer, mixture=mixture, max_documents=2), run)
    return run.output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_every_old_weight_is_kept_bit_for_bit(base, extended):
    old, new = weights(base), weights(extended)
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        assert torch.equal(new[name][: len(tensor)], tensor)
        assert len(new[name]) == len(tensor) or name in (EMBEDDINGS, "lm_head.weight")


def test_a_new_row_is_the_mean_of_the_rows_of_its_old_pieces(base, tokenizer, extended):
    old, new = (json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"] for folder in (base, tokenizer))
    pieces, _ = embeddings.old_pieces(base, tokenizer)
    assert len(pieces) == json.loads((tokenizer / merges.FIGURES).read_text())["new_tokens"]
    text_of = {identity: token for token, identity in old.items()}
    for token, identity in new.items():
        if identity in pieces:
            assert "".join(text_of[piece] for piece in pieces[identity]) == token
    for name in weights(base).keys() & {EMBEDDINGS, "lm_head.weight"}:
        before, after = weights(base)[name], weights(extended)[name]
        for identity, made_of in pieces.items():
            assert torch.allclose(after[identity], before[made_of].mean(0))


def test_the_rows_are_as_many_as_engines_like(base, tokenizer, extended):
    rows = len(weights(extended)[EMBEDDINGS])
    assert rows % embeddings.ROWS_MULTIPLE == 0
    assert rows >= len(AutoTokenizer.from_pretrained(extended))
    assert json.loads((extended / "config.json").read_text())["vocab_size"] == rows
    assert torch.allclose(weights(extended)[EMBEDDINGS][-1], weights(base)[EMBEDDINGS].mean(0))


def test_english_text_gets_the_logits_of_the_base(base, extended):
    ids = AutoTokenizer.from_pretrained(base)(ENGLISH_TEXTS[0], return_tensors="pt")["input_ids"]
    assert AutoTokenizer.from_pretrained(extended)(ENGLISH_TEXTS[0])["input_ids"] == ids[0].tolist()
    with torch.inference_mode():
        before, after = (load_model(folder)(input_ids=ids).logits for folder in (base, extended))
    assert torch.allclose(after[..., : before.shape[-1]], before, atol=1e-6)


def test_what_it_changes_is_measured_by_language(extended):
    figures = json.loads((extended / merges.FIGURES).read_text())
    assert figures["tokens_per_character_khm_after"] < figures["tokens_per_character_khm_before"] / 3
    assert figures["tokens_per_character_eng_after"] == figures["tokens_per_character_eng_before"]
    assert figures["bits_per_character_khm_after"] < figures["bits_per_character_khm_before"]
    assert figures["english_lines_changed"] == 0  # what extended_tokenizer found out stands there too


def test_what_belongs_to_the_base_stays_beside_it(base, extended):
    assert (extended / "base.json").read_bytes() == (base / "base.json").read_bytes()
    assert (extended / "generation_config.json").exists()


def test_no_file_of_the_old_tokenizer_stays(base, tokenizer, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(base, old)
    for name in ("merges.txt", "vocab.json", "LICENSE.txt"):
        (old / name).touch()
    (tmp_path / "new").mkdir()
    embeddings.extend(old, tokenizer, tmp_path / "new")
    names = {file.name for file in (tmp_path / "new").iterdir()}
    assert "LICENSE.txt" in names
    assert not names & {"merges.txt", "vocab.json"}


def test_weights_in_several_files_are_extended_where_they_are(base, tokenizer, tmp_path):
    sharded = tmp_path / "sharded"
    load_model(base).save_pretrained(sharded, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(base).save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    target = tmp_path / "extended"
    target.mkdir()
    embeddings.extend(sharded, tokenizer, target)
    with torch.inference_mode():
        ids = torch.tensor([[5, 6, 7, 500]])
        assert load_model(target)(input_ids=ids).logits.isfinite().all()


def test_rows_that_the_base_has_but_does_not_use_are_taken():
    rows = torch.arange(256.0)[:, None]  # of 250 tokens
    extended = embeddings.with_new_rows(rows, {250: [0, 10], 251: [4]})
    assert extended.shape == (256, 1)
    assert extended[250:, 0].tolist() == [5, 4, 252, 253, 254, 255]


def test_a_tokenizer_of_another_base_is_refused(tokenizer, model, tmp_path):
    with pytest.raises(Refusal, match=r"is no extension of that in .*; materialize both again"):
        embeddings.extend(model, tokenizer, tmp_path)


def test_a_model_that_transformers_would_read_in_another_way_is_refused(base, tokenizer, mixture, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(tokenizer, plain)
    file = plain / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "auto_map"}))
    spec = embeddings.Spec(base=base, tokenizer=plain, mixture=mixture, max_documents=1)
    with pytest.raises(Refusal, match="Qwen2Tokenizer in another way"):
        embeddings.main(spec, PayloadRun(tmp_path))


def test_a_base_without_safetensors_is_refused(base, tokenizer, tmp_path):
    for file in base.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(Refusal, match=r"holds no .*safetensors"):
        embeddings.extend(tmp_path, tokenizer, tmp_path / "target")


@pytest.mark.slow
def test_a_real_model_keeps_its_english(mixture, tmp_path):
    from benchmarks.open_model import folder

    base = folder()
    run = PayloadRun(tmp_path / "tokenizer")
    figures = merges.main(merges.Spec(base=base, mixture=mixture, settings=Extension(merges=40)), run)
    assert figures["english_lines_changed"] == 0 and figures["code_ids_equal"] and figures["chat_template_ids_equal"]
    model = PayloadRun(tmp_path / "model")
    spec = embeddings.Spec(base=base, tokenizer=run.output, mixture=mixture, max_documents=1)
    figures = embeddings.main(spec, model)
    assert figures["bits_per_character_eng_after"] == pytest.approx(figures["bits_per_character_eng_before"], abs=0.002)
