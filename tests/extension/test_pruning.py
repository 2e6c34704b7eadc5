"""Tokens that neither language needs are taken away: every text can still be read, and what is needed stays."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from khmer_assets.extension import embeddings, merges, pruning
from khmer_assets.extension.merges import CODE, FIGURES, UNPRUNED, Extension
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal
from tests.extension.conftest import ADDED
from tests.extension.test_merges import SENTENCE, assert_llama_cpp_agrees
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS

PRUNED = 40


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text())
    return content


@pytest.fixture(scope="module")
def base(qwen, tmp_path_factory) -> Path:
    """A base that names ids of special tokens in all the places where bases do."""
    folder = tmp_path_factory.mktemp("base") / "base"
    shutil.copytree(qwen, folder)
    content = content_of(folder)
    ids = {token["content"]: token["id"] for token in content["added_tokens"]}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    file = folder / "tokenizer_config.json"
    decoder = {str(token["id"]): {"content": token["content"]} for token in content["added_tokens"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": decoder}))
    end = ids["<|im_end|>"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end, ids[ADDED]], "top_k": 20}))
    return folder


@pytest.fixture(scope="module")
def tokenizer(base, mixture, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    run = PayloadRun(tmp_path_factory.mktemp("tokenizer"))
    spec = merges.Spec(base=base, mixture=mixture, settings=Extension(merges=40, prune=PRUNED))
    return run.output, merges.main(spec, run)


@pytest.fixture(scope="module")
def model(base, tokenizer, mixture, tmp_path_factory) -> Path:
    run = PayloadRun(tmp_path_factory.mktemp("model"))
    spec = embeddings.Spec(base=base, tokenizer=tokenizer[0], mixture=mixture, max_documents=2)
    embeddings.main(spec, run)
    return run.output


@pytest.fixture(scope="module")
def read(tokenizer) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer[0] / "tokenizer.json"))


def test_as_many_tokens_go_as_were_asked_for_and_the_others_move_up_in_their_order(tokenizer):
    folder, figures = tokenizer
    before, after = (content_of(place)["model"]["vocab"] for place in (folder / UNPRUNED, folder))
    assert figures["pruned_tokens"] == len(before) - len(after) == PRUNED
    assert list(after.values()) == list(range(len(after)))
    assert list(after) == [token for token in sorted(before, key=before.__getitem__) if token in after]
    new = [token for token, identity in after.items() if identity >= figures["first_new_token"]]
    assert len(new) == figures["new_tokens"]


def test_what_the_text_needs_least_goes_first_and_its_parts_are_needed_more_then():
    vocabulary = {token: place for place, token in enumerate(["a", "b", "c", "ab", "abc", "bc", "<end>"])}
    steps = {"merges": ["a b", "ab c", "b c"], "vocab": vocabulary}
    special = {"content": "<end>", "id": 6}
    content: dict[str, Any] = {"model": steps, "added_tokens": [special], "post_processor": None}
    needed = Counter({"abc": 1, "ab": 2, "bc": 2})
    assert pruning.prune(content, needed, 2, first_new=7) == ["abc", "bc"]  # ab is needed three times by then
    assert content["model"] == {"merges": ["a b"], "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "<end>": 4}}
    assert special["id"] == 4
    assert pruning.prune(content, needed, 9, first_new=5) == ["ab"]  # letters and added tokens stay


def test_ids_in_a_template_of_the_tokenizer_move_too():
    steps = {"merges": ["a b"], "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}}
    template = {"type": "TemplateProcessing", "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}}
    added = [{"content": "<s>", "id": 3}]
    content = {"model": steps, "added_tokens": added, "post_processor": {"type": "Sequence", "processors": [template]}}
    pruning.prune(content, Counter(), 1, first_new=4)
    assert template["special_tokens"]["<s>"]["ids"] == [2]


@settings(max_examples=300)
@given(st.text(max_size=40) | st.lists(st.sampled_from([*ENGLISH_TEXTS, *KHMER_TEXTS, CODE, ADDED])).map("".join))
def test_any_text_comes_back_as_it_was(read, text):
    assert read.decode(read.encode(text).ids, skip_special_tokens=False) == text


def test_a_text_without_pruned_tokens_has_the_same_tokens(tokenizer, read):
    unpruned = Tokenizer.from_file(str(tokenizer[0] / UNPRUNED / "tokenizer.json"))
    gone = unpruned.get_vocab().keys() - read.get_vocab().keys()
    words = {word for text in (*ENGLISH_TEXTS, *KHMER_TEXTS, SENTENCE, CODE) for word in text.split(" ")}
    same = [word for word in words if gone.isdisjoint(unpruned.encode(word).tokens)]
    assert len(same) > len(words) / 3
    for word in same:
        assert read.encode(word).tokens == unpruned.encode(word).tokens


def test_each_row_goes_with_its_token(base, tokenizer, model):
    old, new = content_of(base), content_of(model)["model"]["vocab"]
    ids = old["model"]["vocab"] | {token["content"]: token["id"] for token in old["added_tokens"]}
    before, after = (load_file(folder / "model.safetensors") for folder in (base, model))
    rows = "model.embed_tokens.weight"
    for token, identity in new.items():
        if token in ids:
            assert torch.equal(after[rows][identity], before[rows][ids[token]])
    assert len(after[rows]) % embeddings.ROWS_MULTIPLE == 0
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name != rows)
    assert json.loads((model / "config.json").read_text())["vocab_size"] == len(after[rows])


def test_special_tokens_are_found_wherever_ids_are_named(model):
    ids = content_of(model)["model"]["vocab"]
    end, pad = ids["<|im_end|>"], json.loads((model / "config.json").read_text())["pad_token_id"]
    loaded = AutoTokenizer.from_pretrained(model)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (end, pad)
    assert loaded.convert_tokens_to_ids(ADDED) == ids[ADDED]
    generation = json.loads((model / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [end, ids[ADDED]], "top_k": 20}
    assert json.loads((model / "added_tokens.json").read_text())[ADDED] == ids[ADDED]
    asked = loaded.apply_chat_template([{"role": "user", "content": SENTENCE}], return_dict=False)
    assert end in asked and loaded.decode(asked).count("<|im_end|>") == 1


def test_what_it_costs_and_saves_is_measured(base, tokenizer, model):
    figures = json.loads((model / FIGURES).read_text())
    for language in ("khm", "eng"):
        assert figures[f"bits_per_character_{language}_after"] != figures[f"bits_per_character_{language}_unpruned"] > 0
        tokens = [figures[f"tokens_per_character_{language}_{when}"] for when in ("unpruned", "after")]
        assert tokens[0] <= tokens[1]
    rows = figures["first_new_token"] + figures["new_tokens"] + PRUNED
    saved = -(-rows // embeddings.ROWS_MULTIPLE) * embeddings.ROWS_MULTIPLE - figures["rows"]
    assert saved == embeddings.ROWS_MULTIPLE
    assert figures["bytes_saved"] == pytest.approx(saved * load_model(base).config.hidden_size * 4, abs=200)
    assert 0 <= figures["pruned_share_of_sample"] < 0.1


def test_llama_cpp_gives_the_same_ids(base, tokenizer, read, tmp_path):
    assert_llama_cpp_agrees(base, tokenizer[0], read, tmp_path)


def test_more_than_can_go_is_refused(base, mixture, tmp_path):
    spec = merges.Spec(base=base, mixture=mixture, settings=Extension(merges=40, prune=5000))
    with pytest.raises(Refusal, match=r"only \d+ of the base's tokens can be taken away.*extension.prune \(5000\)"):
        merges.main(spec, PayloadRun(tmp_path))


def test_a_pruned_tokenizer_of_another_base_is_refused(base, tokenizer, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tokenizer[0], other)
    content = content_of(other)
    content["model"]["merges"].pop(0)
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(Refusal, match=r"is no extension of that in .*; materialize both again"):
        embeddings.old_pieces(base, other)
