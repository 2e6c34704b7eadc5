"""A model is measured on everything, resumes where it was killed, and a model that was made worse is told from it."""

import json

import polars as pl
import pytest

from khmer_assets.evaluation import compare, evaluate, report
from khmer_assets.evaluation.engines import TransformersEngine
from khmer_assets.evaluation.evaluate import Evaluation, examine
from khmer_assets.evaluation.examination import Examination
from khmer_assets.evaluation.items import Benchmark, as_frame
from khmer_assets.evaluation.tasks import belebele, safety
from khmer_assets.evaluation.tasks.prompts import Prompt
from khmer_assets.finetuning.encoding import encode_chats
from khmer_assets.release.gates import Release, judge
from khmer_assets.training.models import load_model
from resources.payload import PayloadRun
from tests.tiny_model import save_tiny_mixture, save_tiny_model

CONTEXT = 128
REFUSALS = {"khm_Khmr": "សូមទោស ខ្ញុំមិនអាចជួយបានទេ។", "eng_Latn": "Sorry, I cannot help with that."}
FACTS = {"តើមេឃពណ៌អ្វី?": "មេឃពណ៌ខៀវ។", "តើស្រូវពណ៌អ្វី?": "ស្រូវពណ៌មាស។", "What is red?": "A rose is red."}
TASK = Benchmark(task="belebele", items=4)
SETTINGS = Evaluation(max_documents=2, max_new_tokens=16, prompts=[Prompt(prompt="តើមេឃពណ៌អ្វី?")], tasks=[TASK])

pytestmark = pytest.mark.slow


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


CHATS = [turns(*pair) for pair in FACTS.items()]
CHATS += [turns(f"{question} {way}", answer) for question, answer in FACTS.items() for way in ("សូមប្រាប់", "ឆ្លើយ", "!")]
LESSONS = CHATS + [turns(r.prompt, REFUSALS[r.language]) for r in safety.requests() if r.harmful]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model that has learned to answer and to refuse, and what it is measured on."""
    import torch

    place = tmp_path_factory.mktemp("measured")
    texts = [message["content"] for chat in LESSONS for message in chat]
    made = save_tiny_model(place / "untrained", texts=texts, hidden_size=128, intermediate_size=256, head_dim=32)
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(made), load_model(made).train()
    examples = encode_chats(tokenizer, LESSONS, CONTEXT).examples
    width = max(len(example.ids) for example in examples)
    ids = torch.tensor([e.ids + [0] * (width - len(e.ids)) for e in examples])
    labels = torch.tensor([e.labels + [-100] * (width - len(e.labels)) for e in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
    model.to(torch.bfloat16).save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    (place / "chats").mkdir()
    rows = [{"messages": chat, "split": "test"} for chat in CHATS]
    rows.append({"messages": turns("ក" * 3000, "វែងពេក"), "split": "test"})
    pl.DataFrame(rows).write_parquet(place / "chats" / "data.parquet")
    save_tiny_mixture(place / "mixture")
    (place / "items").mkdir()
    as_frame({TASK.name: belebele.read(TASK)}).sink_parquet(place / "items" / "data.parquet")
    return place


def spec(folder, **changes) -> evaluate.Spec:
    return evaluate.Spec(
        **{
            "variant": "merged",
            "model": folder / "model",
            "tokenizer": folder / "model",
            "mixture": folder / "mixture",
            "chats": folder / "chats",
            "items": folder / "items",
            "settings": SETTINGS,
            "context_length": CONTEXT,
            **changes,
        }
    )


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    run = PayloadRun(tmp_path_factory.mktemp("work"))
    evaluate.main(spec(folder), run)
    return run


def test_everything_is_measured_with_intervals(evaluated):
    told = json.loads((evaluated.output / "evaluation.json").read_text())
    assert {one["task"] for one in told["measures"]} == set(SETTINGS.task_names(["eng", "khm"])) - {"prompts"}
    assert all(one["low"] <= one["value"] <= one["high"] for one in told["measures"])
    assert told["answer_accuracy"] > 0.8 and told["chats_too_long"] == 1  # which is counted, and no division by zero
    assert told["tokens_per_second"] > 0 and told["bytes"] > 0
    assert {"choices", "answers"} & set(told["calibration"]) == set()  # too few of each
    answers = [json.loads(line) for line in (evaluated.output / "answers.jsonl").read_text().splitlines()]
    assert {"chats", "prompts", "safety"} == {one["task"] for one in answers}


def test_a_killed_evaluation_does_not_measure_again_what_it_had_finished(folder, evaluated, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("measured again")

    for part in ("_chats", "_safety", "_prompts"):
        monkeypatch.setattr(evaluate, part, never)
    before = (evaluated.output / "scores.json").read_text()
    evaluate.main(spec(folder), evaluated)
    assert (evaluated.output / "scores.json").read_text() == before


def test_a_model_made_worse_is_blocked_and_a_harmless_change_is_not(folder, tmp_path):
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    gates = Release(variant="merged", max_bits_per_character=99, min_answer_accuracy=0, must_not_lose=["chats"])
    changes = {
        "released": ("model", 0.0),
        "harmless": ("model", 1e-4),
        "noised": ("model", 3.0),
        "without what it learned": ("untrained", 0.0),
    }
    found = {}
    for name, (trained, noise) in changes.items():
        torch.manual_seed(1)
        model = load_model(folder / trained).eval()
        with torch.no_grad():
            for weights in model.parameters():
                weights += noise * weights.std() * torch.randn_like(weights)
        engine = TransformersEngine(model, CONTEXT)
        examination = Examination(engine, tokenizer, SETTINGS.max_new_tokens)
        found[name] = examine(spec(folder), PayloadRun(tmp_path / name), examination).measures
    guards = ("variant_loses_nothing", "variant_is_safe")
    passed = {
        name: [v.passed for v in judge(gates, {}, measures, found["released"]) if v.gate in guards]
        for name, measures in found.items()
    }
    assert passed == {
        "released": [True, True],
        "harmless": [True, True],
        "noised": [False, False],
        "without what it learned": [False, False],
    }


def test_the_report_holds_variants_other_models_changes_and_no_markup_of_theirs(folder, evaluated, tmp_path):
    other = PayloadRun(tmp_path / "other")
    given = {name: folder / name for name in ("mixture", "chats", "items")}
    asked = compare.Spec(
        models=[str(folder / "model")], former=None, settings=SETTINGS, context_length=CONTEXT, **given
    )
    compare.main(asked, other)
    (compared,) = other.output.iterdir()
    hostile = json.loads((compared / "evaluation.json").read_text())
    hostile["answers"][0]["answer"] = "<script>alert(1)</script>"
    (compared / "evaluation.json").write_text(json.dumps(hostile))
    released = tmp_path / "release"
    released.mkdir()
    (released / "release.json").write_text(json.dumps({"variant": "merged"}))
    (released / "scores.json").write_bytes((evaluated.output / "scores.json").read_bytes())
    run = PayloadRun(tmp_path / "report")
    report.main(report.Spec(recipe="test", evaluations=[evaluated.output], compared=[compared], release=released), run)
    told = json.loads((run.output / "report.json").read_text())
    assert set(told["variants"]) == {"merged"} and set(told["compared"]) == {str(folder / "model")}
    assert told["changes"] and {one["verdict"] for one in told["changes"]} == {"alike"}
    page = (run.output / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "http" not in page.replace("http-equiv", "")
    assert (run.output / "scores" / "merged.json").exists()
    again = PayloadRun(tmp_path / "again")
    compare.main(asked.model_copy(update={"former": other.output}), again)  # nothing is measured: it would be read anew
    assert json.loads((again.output / compared.name / "evaluation.json").read_text()) == hostile
