"""Exports are asked and scored by the library that runs them as the model is by transformers."""

import pytest

from khmer_assets.compression import ctranslate2, gguf, onnx
from khmer_assets.evaluation.engines import Engine, TransformersEngine
from khmer_assets.evaluation.export_engines import (
    CTranslate2Engine,
    LlamaCppUsers,
    OnnxEngine,
    export_engine,
    runtime_of,
)
from khmer_assets.training.models import load_model
from tests.evaluation.test_engines import CONTEXT, one_by_one, questions
from tests.tiny_model import save_tiny_model

PROMPTS = [[number * 7 % 400 + 5 for number in range(start, start + length)] for start, length in ((1, 9), (40, 30))]
PROMPTS += [[11, 12, 13], [], [9] * CONTEXT, [*range(50, 50 + CONTEXT - 2)], [14, 15, 16]]


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def folder(request, tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp(request.param) / "model", architecture=request.param)


@pytest.fixture(scope="module", params=["CTranslate2", "onnxruntime"])
def export(request, folder, tmp_path_factory) -> Engine:
    """The model in another library, in float32, in which both must agree."""
    made = tmp_path_factory.mktemp("export")
    if request.param == "CTranslate2":
        ctranslate2.convert(folder, made, "float32")
    else:
        onnx.write(folder, made / onnx.FILE, quantized=False)
    assert runtime_of(made) == request.param
    engine = export_engine(made, CONTEXT, threads=1)
    assert isinstance(engine, {"CTranslate2": CTranslate2Engine, "onnxruntime": OnnxEngine}[request.param])
    return engine


@pytest.fixture(scope="module")
def whole(folder) -> TransformersEngine:
    return TransformersEngine(load_model(folder).eval(), CONTEXT)


def test_likelihoods_are_those_of_transformers(export, whole):
    asked = questions(count=8)
    found = export.likelihoods(asked)
    for question, own in zip(asked, found, strict=True):
        assert own == pytest.approx(one_by_one(whole.model, question), abs=2e-3)


def test_windows_are_scored_as_in_transformers(export, whole):
    windows = [[*PROMPTS[1]], [5, 6], [*PROMPTS[5]]]
    assert export.score(windows) == pytest.approx(whole.score(windows), rel=1e-4)


@pytest.mark.parametrize("stops", [set(), {3, 5, 8, 100, 200, 300}])
def test_answers_are_those_of_transformers(export, whole, stops):
    said, wanted = export.generate(PROMPTS, stops, 12), whole.generate(PROMPTS, stops, 12)
    assert [answer.ids for answer in said] == [answer.ids for answer in wanted]
    assert [len(answer.ids) for answer in said][3:6] == [0, 0, 2]
    for one, other in zip(said, wanted, strict=True):
        assert one.nats == pytest.approx(other.nats, abs=2e-3)


def test_a_stop_ends_an_answer_and_is_told_with_its_likelihood(export):
    (free,) = export.generate(PROMPTS[:1], set(), 6)
    (ended,) = export.generate(PROMPTS[:1], {free.ids[2]}, 6)
    first = free.ids.index(free.ids[2])
    assert ended.ids == free.ids[:first]
    assert ended.nats == pytest.approx(free.nats[: first + 1], abs=2e-3)


def test_the_same_prompt_gets_the_same_answer_beside_any_other(export):
    alone = [export.generate([prompt], set(), 8)[0].ids for prompt in PROMPTS]
    assert [answer.ids for answer in export.generate(PROMPTS, set(), 8)] == alone


def test_llama_cpp_goes_on_with_several_users_as_with_each_alone(folder, tmp_path):
    gguf.write_float16(folder, tmp_path / "float16.gguf")
    engine = export_engine(tmp_path, CONTEXT)
    assert engine is not None
    prompts = [[9, 8, 7], [*range(60, 75)], [300]]
    users = LlamaCppUsers(tmp_path / "float16.gguf", 40, len(prompts), threads=1)
    wanted = [engine.generate([prompt], set(), 4)[0].ids for prompt in prompts]
    assert [answer.ids for answer in users.generate(prompts, set(), 4)] == wanted
    assert users.generate(prompts[:1], {wanted[0][0]}, 4)[0].ids == []
    assert [len(answer.ids) for answer in users.generate(prompts, set(), 1)] == [1, 1, 1]


def test_a_folder_of_transformers_has_no_engine_of_its_own(folder):
    assert runtime_of(folder) == "transformers"
    assert export_engine(folder, CONTEXT) is None
