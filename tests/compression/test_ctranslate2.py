"""CTranslate2 predicts with the converted model what transformers predicts, with the same tokens."""

import json

import pytest

from khmer_assets.compression import ctranslate2
from resources.payload import PayloadRun, Refusal
from tests.compression.test_gguf import LLAMA3_ROPE
from tests.compression.test_onnx import IDS, predicted, with_biases
from tests.tiny_model import save_tiny_model


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("qwen3", {"vocab_size": 544}),
        ("qwen2", {}),
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}}),
        ("gpt2", {}),
    ],
)
def test_the_model_predicts_what_transformers_predicts(tmp_path, architecture, config):
    import ctranslate2 as library
    import numpy as np

    folder = save_tiny_model(tmp_path / "model", architecture=architecture, **config)
    with_biases(folder)
    expected = predicted(folder)
    for weights, tolerance in (("float32", 1e-5), (ctranslate2.WEIGHTS, 0.05)):
        ctranslate2.convert(folder, tmp_path / weights, weights)
        logits = np.array(library.Generator(str(tmp_path / weights)).forward_batch(IDS))
        assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()


def test_the_figures_tell_how_near_it_is_and_the_tokens_are_the_same(calibration, tmp_path):
    run = PayloadRun(tmp_path)
    figures = ctranslate2.main(ctranslate2.Spec(**calibration), run)
    assert figures["tokens_renamed"] == 0
    assert figures["top1_agreement"] > 0.85  # of a model that knows nothing
    assert 0 < figures["logits_error"] < 0.05
    assert json.loads((run.output / ctranslate2.FIGURES).read_text()) == figures
    assert {"model.bin", "vocabulary.json", "tokenizer.json"} <= {file.name for file in run.output.iterdir()}
    weights = sum(file.stat().st_size for file in calibration["model"].glob("*.safetensors"))
    assert figures["ctranslate2_bytes"] < 0.6 * weights


def test_an_architecture_that_is_not_known_is_refused(tmp_path):
    config = save_tiny_model(tmp_path / "model") / "config.json"
    config.write_text(config.read_text().replace('"qwen3"', '"opt"'))
    with pytest.raises(Refusal, match="'opt' model is not converted"):
        ctranslate2.convert(config.parent, tmp_path / "converted")


def test_a_rotation_that_the_library_would_compute_otherwise_is_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "model", architecture="llama", rope_parameters=LLAMA3_ROPE)
    with pytest.raises(Refusal, match="llama3 rotary embeddings as if they were not scaled"):
        ctranslate2.convert(folder, tmp_path / "converted")


def test_what_the_library_cannot_convert_is_refused_in_its_own_words(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    folder = save_tiny_model(tmp_path / "model", architecture="llama", rope_parameters=rope)
    with pytest.raises(Refusal, match=r"CTranslate2 cannot convert .*dynamic.*leave ctranslate2 out"):
        ctranslate2.convert(folder, tmp_path / "converted")
