"""Engines give the same picks and answers at any batch size, whatever a model's own generation settings are."""

import random

import pytest

from khmer_assets.compression.gguf import write_float16
from khmer_assets.evaluation import reading
from khmer_assets.evaluation.engines import LlamaCppEngine, Question, TransformersEngine
from khmer_assets.training.models import load_model
from tests.tiny_model import save_tiny_model

CONTEXT = 96


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def model(request, tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp(request.param) / "model", architecture=request.param)
    return load_model(folder).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("shared") / "model")


def questions(seed: int = 1, count: int = 24, longest: int = 50) -> list[Question]:
    """Some share a beginning, some choices have one id, some none fits the context with."""
    generator = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [generator.randrange(3, 500) for _ in range(length)]

    head, found = ids(40), []
    for number in range(count):
        context = ids(generator.randint(1, longest))
        context = head + context if number % 3 == 0 else context * 4 if number % 7 == 0 else context
        choices = [ids(generator.randint(1, 1 if number % 2 else 5)) for _ in range(generator.randint(2, 4))]
        found.append(Question(context, choices))
    return found


def one_by_one(model, question: Question) -> list[float]:
    """Each choice in a pass of its own, cut on the left as EleutherAI's harness does."""
    import torch

    found = []
    for choice in question.choices:
        ids = (question.context + choice)[-(CONTEXT + 1) :]
        with torch.no_grad():
            likelihoods = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
        places = range(len(ids) - 1 - len(choice), len(ids) - 1)
        found.append(sum(float(likelihoods[at, ids[at + 1]]) for at in places))
    return found


def test_likelihoods_are_those_of_each_choice_alone(model):
    asked = questions()
    engine = TransformersEngine(model, CONTEXT)
    assert any(engine.is_truncated(question) for question in asked)
    for found, question in zip(engine.likelihoods(asked), asked, strict=True):
        assert found == pytest.approx(one_by_one(model, question), abs=1e-3)


def test_a_model_with_sliding_windows_is_asked_each_choice_alone(tmp_path):
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16, "use_sliding_window": True}
    sliding = load_model(save_tiny_model(tmp_path / "model", **kinds)).eval()
    asked = questions(5, 8)
    for found, question in zip(TransformersEngine(sliding, CONTEXT).likelihoods(asked), asked, strict=True):
        assert found == pytest.approx(one_by_one(sliding, question), abs=1e-3)


def test_the_pick_does_not_depend_on_the_batch(model, monkeypatch):
    asked, picks = questions(2), []
    for rows in (1, 5, 64):
        monkeypatch.setattr(reading, "ROWS_A_BATCH", rows)
        found = TransformersEngine(model, CONTEXT).likelihoods(asked)
        picks.append([max(range(len(own)), key=own.__getitem__) for own in found])
    assert picks[0] == picks[1] == picks[2]


def test_greedy_answers_are_those_of_transformers_at_any_batch_size(model, monkeypatch):
    import torch

    prompts = [question.context[:30] for question in questions(3, 8)]
    stops = {model.config.eos_token_id, 7}
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                             eos_token_id=list(stops), repetition_penalty=1.0)  # fmt: skip
        answer = out[0, len(prompt) :].tolist()
        cut = [place for place, identity in enumerate(answer) if identity in stops]
        expected.append(answer[: cut[0]] if cut else answer)
    for rows in (1, 3, 64):
        monkeypatch.setattr(reading, "ROWS_A_BATCH", rows)
        assert [one.ids for one in TransformersEngine(model, CONTEXT).generate(prompts, stops, 12)] == expected


def test_no_setting_that_a_model_brings_along_changes_an_answer(model):
    engine, prompts = TransformersEngine(model, CONTEXT), [[5, 6, 7]]
    plain = engine.generate(prompts, set(), 10)
    model.generation_config.repetition_penalty, model.generation_config.temperature = 5.0, 2.0
    assert engine.generate(prompts, set(), 10) == plain


def test_a_prompt_that_fills_the_context_is_not_continued_and_none_grows_beyond_it(folder):
    engine = TransformersEngine(load_model(folder).eval(), CONTEXT)
    full, nearly, empty = engine.generate([[5] * CONTEXT, [5] * (CONTEXT - 3), []], set(), 10)
    assert (full.ids, len(nearly.ids), empty.ids) == ([], 3, [])


@pytest.mark.slow
def test_llama_cpp_scores_and_answers_as_transformers(folder, tmp_path):
    write_float16(folder, tmp_path / "model.gguf")
    ours, theirs = (
        TransformersEngine(load_model(folder).eval(), CONTEXT),
        LlamaCppEngine(tmp_path / "model.gguf", CONTEXT),
    )
    asked = questions(4, 10)
    for one, other in zip(ours.likelihoods(asked), theirs.likelihoods(asked), strict=True):
        assert one == pytest.approx(other, abs=0.05)  # float16
    windows = [question.context[:CONTEXT] for question in asked if len(question.context) > 1]
    assert ours.score(windows) == pytest.approx(theirs.score(windows), rel=1e-3, abs=0.05)
    prompts = [question.context[:20] for question in asked]
    answers = [[one.ids for one in engine.generate(prompts, {2}, 8)] for engine in (ours, theirs)]
    assert sum(a == b for a, b in zip(*answers, strict=True)) >= len(prompts) - 1  # two logits may be within float16
