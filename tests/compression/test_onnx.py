"""onnxruntime predicts with the written file what transformers predicts, also where it reads on."""

import json

import numpy as np
import pytest

from khmer_assets.compression import onnx
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun, Refusal
from tests.compression.test_gguf import LLAMA3_ROPE
from tests.tiny_model import save_tiny_model

IDS = [[(11 * place + start) % 500 + 3 for place in range(40)] for start in (0, 250)]


def predicted(folder) -> "np.ndarray":
    import torch

    with torch.inference_mode():
        return load_model(folder)(input_ids=torch.tensor(IDS)).logits.numpy()


def with_biases(folder) -> None:
    """Those of a model that is not trained are zeros."""
    import torch

    model = load_model(folder)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("qwen3", {"vocab_size": 544}),
        ("qwen2", {}),
        ("llama", {"tie_word_embeddings": False}),
        ("llama", {"rope_parameters": LLAMA3_ROPE}),
        ("gpt2", {}),
    ],
)
def test_the_decoder_predicts_what_transformers_predicts(tmp_path, architecture, config):
    import onnxruntime

    folder = save_tiny_model(tmp_path / "model", architecture=architecture, **config)
    with_biases(folder)
    expected = predicted(folder)
    for quantized, tolerance in ((False, 1e-5), (True, 0.05)):
        file = tmp_path / f"{quantized}.onnx"
        onnx.write(folder, file, quantized)
        session = onnxruntime.InferenceSession(file)
        names = [output.name for output in session.get_outputs()]
        first = {**onnx.first_inputs(session, 2), **onnx.inputs_of([row[:30] for row in IDS], 4)}
        logits, *held = session.run(None, first)
        assert np.abs(logits - expected[:, 26:30]).max() < tolerance * np.abs(expected).max()
        past = {name.replace("present", "past_key_values"): one for name, one in zip(names[1:], held, strict=True)}
        (step,) = session.run(["logits"], {**past, **onnx.inputs_of([row[30:31] for row in IDS], 1)})
        assert np.abs(step[:, 0] - expected[:, 30]).max() < tolerance * np.abs(expected).max()
        second = {name: one[1:] for name, one in past.items()}
        (rest,) = session.run(["logits"], {**second, **onnx.inputs_of([IDS[1][30:]], 10)})
        assert np.abs(rest[0] - expected[1, 30:]).max() < tolerance * np.abs(expected).max()


def test_the_figures_tell_how_near_it_is(calibration, tmp_path):
    run = PayloadRun(tmp_path)
    figures = onnx.main(onnx.Spec(**calibration), run)
    assert figures["top1_agreement"] > 0.85  # of a model that knows nothing
    assert 0 < figures["logits_error"] < 0.05
    assert json.loads((run.output / onnx.FIGURES).read_text()) == figures
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json"} <= {
        file.name for file in run.output.iterdir()
    }
    weights = sum(file.stat().st_size for file in calibration["model"].glob("*.safetensors"))
    assert figures["onnx_bytes"] < 0.7 * weights


def test_the_same_model_gives_the_same_file(model, tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        onnx.write(model, tmp_path / name / onnx.FILE)
    for file in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"qwen3"', '"opt"'), "'opt' model cannot be written as ONNX"),
        (('"full_attention"', '"sliding_attention"'), "sliding-window"),
    ],
)
def test_what_the_graph_has_not_is_refused(tmp_path, change, message):
    config = save_tiny_model(tmp_path / "model") / "config.json"
    config.write_text(config.read_text().replace(*change))
    with pytest.raises(Refusal, match=message):
        onnx.write(config.parent, tmp_path / onnx.FILE)


def test_rows_that_do_not_divide_into_blocks_are_refused(tmp_path):
    folder = save_tiny_model(tmp_path / "model", intermediate_size=500)
    with pytest.raises(Refusal, match=r"down_proj.* rows of 500 .*32"):
        onnx.write(folder, tmp_path / onnx.FILE)
