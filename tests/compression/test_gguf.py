"""llama.cpp reads the GGUF files, gives the token ids of transformers and predicts what transformers predicts."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import open_model
from khmer_assets.compression import gguf
from khmer_assets.tokenizer.bpe import GPT2_PATTERN, QWEN2_PATTERN, train_bpe
from khmer_assets.tokenizer.chat_template import wrap
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal
from tests.tiny_model import ENGLISH_TEXTS, KHMER_TEXTS, save_tiny_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("quantization", ["Q4_K_M", "Q5_K_M", "Q8_0"])
def test_llama_cpp_reads_text_as_transformers_does(calibration, tmp_path, quantization):
    run = PayloadRun(tmp_path)
    figures = gguf.main(gguf.Spec(quantization=quantization, **calibration), run)

    assert figures["texts_with_equal_ids"] == figures["texts"] == 8
    assert figures["fallback_tensors"] == 0
    assert figures["gguf_bytes"] < figures["float16_bytes"]
    assert {file.name for file in run.output.iterdir()} == {f"{quantization}.gguf", gguf.FIGURES}
    assert json.loads((run.output / gguf.FIGURES).read_text()) == figures


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("qwen3", {}),
        ("qwen2", {}),
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("gpt2", {}),
    ],
)
def test_the_float16_file_predicts_what_transformers_predicts(tmp_path, architecture, config):
    import numpy as np
    import torch
    from llama_cpp import Llama

    folder = save_tiny_model(tmp_path / "model", architecture=architecture, **config)
    gguf.write_float16(folder, tmp_path / "float16.gguf")

    llama = Llama(str(tmp_path / "float16.gguf"), n_ctx=0, logits_all=True, verbose=False)
    ids = llama.tokenize(" ".join(KHMER_TEXTS[:4]).encode())
    llama.eval(ids)
    actual = llama.scores[: len(ids)].copy()
    llama.close()
    with torch.inference_mode():
        expected = load_model(folder)(input_ids=torch.tensor([ids])).logits[0].numpy()
    assert np.abs(actual - expected).max() < 0.002 * np.abs(expected).max()


def test_the_same_model_gives_the_same_file(calibration, tmp_path):
    files = []
    for name in ("first", "second"):
        run = PayloadRun(tmp_path / name)
        gguf.main(gguf.Spec(quantization="Q4_K_M", **calibration), run)
        files.append((run.output / "Q4_K_M.gguf").read_bytes())
    assert files[0] == files[1]


def test_the_importance_matrix_changes_what_is_kept(model, tmp_path):
    gguf.write_float16(model, tmp_path / "float16.gguf")
    importance = gguf.importance_matrix(model, list(KHMER_TEXTS), length=64)
    assert importance["blk.1.ffn_down.weight"].shape == (512,)
    assert all((values > 0).all() for values in importance.values())
    for name, matrix in (("with", importance), ("without", {})):
        gguf.quantize(tmp_path / "float16.gguf", tmp_path / name, "Q4_K_M", matrix)
    assert (tmp_path / "with").read_bytes() != (tmp_path / "without").read_bytes()


def test_rows_that_k_quants_cannot_pack_are_counted(calibration, tmp_path):
    calibration["model"] = save_tiny_model(tmp_path / "model", intermediate_size=320)
    figures = gguf.main(gguf.Spec(quantization="Q4_K_M", **calibration), PayloadRun(tmp_path))
    assert figures["fallback_tensors"] == 2  # the down projection of both layers


def test_unused_rows_of_the_embedding_are_kept(calibration, tmp_path):
    calibration["model"] = save_tiny_model(tmp_path / "model", vocab_size=544)
    figures = gguf.main(gguf.Spec(quantization="Q8_0", **calibration), PayloadRun(tmp_path))
    assert figures["texts_with_equal_ids"] == figures["texts"]


def test_a_gpt2_is_quantized_too(calibration, tmp_path):
    calibration["model"] = save_tiny_model(tmp_path / "model", architecture="gpt2")
    figures = gguf.main(gguf.Spec(quantization="Q4_K_M", **calibration), PayloadRun(tmp_path))
    assert figures["texts_with_equal_ids"] == figures["texts"]
    assert "Q4_K" in figures["tensor_types"]


def test_an_architecture_that_is_not_known_is_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "model")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"qwen3"', '"opt"'))
    with pytest.raises(Refusal, match="'opt' model cannot be written as GGUF"):
        gguf.write_float16(folder, tmp_path / "float16.gguf")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> tuple[object, object]:
    """A tokenizer in transformers and in llama.cpp."""
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    folder: Path = save_tiny_model(tmp_path_factory.mktemp("vocabulary"))
    file = folder / "float16.gguf"
    gguf.write_float16(folder, file)
    return AutoTokenizer.from_pretrained(folder), Llama(str(file), vocab_only=True, verbose=False)


CHARACTERS = st.one_of(
    st.characters(min_codepoint=0x1780, max_codepoint=0x17F9, exclude_categories=["Cn"]),
    st.sampled_from("\u200b\u200c \n\t.,'\u17d4!?0123456789"),
    st.characters(min_codepoint=0x20, max_codepoint=0x7E),
    st.sampled_from(["<|im_start|>", "<|im_end|>", "'s", "\r\n", "  "]),
)


@settings(max_examples=300)
@given(st.lists(CHARACTERS, max_size=40).map("".join))
def test_any_khmer_and_english_text_gets_the_same_ids(vocabulary, text):
    tokenizer, llama = vocabulary
    assert llama.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"]


def content_of(pattern: str = "", **changes: object) -> dict:
    tokenizer = train_bpe(KHMER_TEXTS, 300, pattern) if pattern else train_bpe(KHMER_TEXTS, 300)
    return json.loads(wrap(tokenizer).backend_tokenizer.to_str()) | changes


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("", "qwen35"), (QWEN2_PATTERN, "qwen2"), (gguf.LLAMA3_PATTERN, "llama-bpe"), (GPT2_PATTERN, "gpt-2")],
)
def test_the_pattern_names_the_pre_tokenizer(pattern, name):
    assert gguf.pre_tokenizer_name(content_of(pattern)) == name


def test_gpt2s_own_pre_tokenizer_is_known():
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert gguf.pre_tokenizer_name(content_of(pre_tokenizer=byte_level)) == "gpt-2"


@pytest.mark.slow
def test_a_real_open_model_gets_the_same_ids_everywhere(tmp_path):
    from llama_cpp import Llama
    from transformers import AutoTokenizer

    folder = open_model.folder()
    assert gguf.pre_tokenizer_name(json.loads((folder / "tokenizer.json").read_text())) == "smollm"
    gguf.write_float16(folder, tmp_path / "float16.gguf")
    tokenizer, llama = AutoTokenizer.from_pretrained(folder), Llama(str(tmp_path / "float16.gguf"), vocab_only=True)
    for text in (*KHMER_TEXTS, *ENGLISH_TEXTS, "In 2026 there were 1,234 of them.", "def f(x):\n    return x + 10\n"):
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (content_of(r"\p{L}+|\p{N}+"), "no pre-tokenizer like"),
        (content_of(normalizer={"type": "Lowercase"}), "does not normalize"),
        (content_of(pre_tokenizer={"type": "Whitespace"}), "byte-level BPE"),
        (content_of(pre_tokenizer=None), "byte-level BPE"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_read_in_another_way_is_refused(content, message):
    with pytest.raises(Refusal, match=message):
        gguf.pre_tokenizer_name(content)
