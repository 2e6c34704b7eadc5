"""Measures one variant of the model: held-out text, benchmarks, chats, prompts, writing, safety, calibration; and what
it takes: bytes, memory and speed.

A variant runs in a process of its own, so that the memory that it needs can be told. Each runs in the library that it
was made for (`export_engines.py`) and answers greedily. Speed and memory are measured in bfloat16, as it is served; all
else in float32 where that fits, in which an item gets the same pick whatever stands beside it in its batch.
"""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, Field

from khmer_assets.evaluation import calibration, judge, writing
from khmer_assets.evaluation.engines import Engine, TransformersEngine
from khmer_assets.evaluation.examination import Answer, Examination, Examiner, stops_of
from khmer_assets.evaluation.export_engines import bytes_of_weights, export_engine
from khmer_assets.evaluation.items import Benchmark, Item, items_of
from khmer_assets.evaluation.measures import Measure, mean_of, read
from khmer_assets.evaluation.tasks import chats as chats_task
from khmer_assets.evaluation.tasks import held_out, prompts, safety, sib200, translation
from khmer_assets.evaluation.tasks.prompts import Prompt
from khmer_assets.foundation.files import write_whole
from khmer_assets.foundation.settings import PositiveInt, Settings, digest_of
from khmer_assets.instructions.chats import chats_of
from khmer_assets.khmer.script import dominant_script
from khmer_assets.teachers.settings import Teacher
from khmer_assets.training.held_out import validation_texts
from resources.payload import PayloadRun

SCORES = "scores.json"  # sums by item of all measures, for paired tests
ANSWERS = "answers.jsonl"  # all that was generated
CALIBRATION = "calibration.json"
SPEED_ROUNDS, SPEED_TOKENS = 3, 48


class Evaluation(Settings):
    """`max_documents` held-out documents a language are scored; `prompts`, with checks or without, are answered by
    every variant, and so are `tasks`, public benchmarks. `max_chats`: how many of the test chats, all by default.
    `safety_teacher`: the name of the teacher that judges the safety suite's answers, beside the rules."""

    max_documents: PositiveInt
    max_new_tokens: PositiveInt
    prompts: Annotated[list[Prompt], Field(min_length=1)]
    tasks: list[Benchmark] = []
    max_chats: PositiveInt | None = None
    safety_teacher: str | None = None

    def task_names(self, languages: Sequence[str]) -> list[str]:
        """All that `release.must_not_lose` may name, where the mixture has these languages."""
        texts = [f"{held_out.TASK} {language}" for language in languages]
        own = [chats_task.TASK, prompts.TASK, writing.TASK, safety.TASK]
        own += [judge.TASK] if self.safety_teacher else []
        return [*texts, *(task.name for task in self.tasks), *own]


class Spec(BaseModel):
    """`model` is the variant's folder, `tokenizer` that of the merged model (the ids are the same in all variants).
    `items` is the folder of evaluation_items, nothing where the recipe names no task. `has_template`: whether the model
    knows chats; one that does not is asked in plain text. `teacher` judges safety, with its answers in `teachers`."""

    variant: str
    model: Path
    tokenizer: Path
    mixture: Path
    chats: Path
    items: Path | None = None
    settings: Evaluation
    context_length: int
    has_template: bool = True
    teacher: Teacher | None = None
    teachers: Path | None = None


def tested_chats(chats: Path, most: int | None = None) -> list[list[dict[str, str]]]:
    """The held-out chats that are asked."""
    return [chat for chat in chats_of(chats, "test") if len(chat) > 1][:most]


class _Parts:
    """What is measured, part by part; a part that an earlier, killed run has finished is not measured again."""

    def __init__(self, run: PayloadRun):
        self.run = run
        self.measures: list[Measure] = []
        self.answers: list[dict[str, Any]] = []
        self.choices: list[calibration.Record] = []
        self.exact: list[calibration.Record] = []
        self.figures: dict[str, Any] = {}

    def part(self, name: str, measure: Callable[["_Parts"], None]) -> None:
        """Add what `measure` adds to the parts that it is given."""
        file = self.run.state / f"{digest_of(name)[:16]}.json"
        if file.exists():
            kept = json.loads(file.read_text())
        else:
            self.run.log(name)
            own = _Parts(self.run)
            measure(own)
            kept = own._kept()
            write_whole(file, json.dumps(kept, ensure_ascii=False))
        self.measures += [read(one) for one in kept["measures"]]
        self.answers += kept["answers"]
        self.choices += [calibration.Record(*one) for one in kept["choices"]]
        self.exact += [calibration.Record(*one) for one in kept["exact"]]
        for key, value in kept["figures"].items():
            if isinstance(value, dict):
                self.figures.setdefault(key, {}).update(value)
            else:
                self.figures[key] = value

    def _kept(self) -> dict[str, Any]:
        return {
            "measures": [measure.kept() for measure in self.measures],
            "answers": self.answers,
            "choices": [[record.scores, record.right] for record in self.choices],
            "exact": [[record.scores, record.right] for record in self.exact],
            "figures": self.figures,
        }

    def said(self, task: str, identity: str, prompt: str, answer: Answer, language: str, **more: Any) -> None:
        """Keep an answer for people, and for what is measured of all that was generated."""
        kept = {"task": task, "id": identity, "language": language, "prompt": prompt, "answer": answer.text}
        self.answers.append({**kept, **more})


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `evaluation.json` (figures and measures with intervals), `scores.json` (each measure's sums by item),
    `answers.jsonl` and `calibration.json`."""
    import torch
    from transformers import AutoTokenizer

    from khmer_assets.training import models

    tokenizer = AutoTokenizer.from_pretrained(spec.tokenizer)
    if not spec.has_template:
        tokenizer.chat_template = None
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what was imported so far
    before = process_memory("VmRSS")
    exported = export_engine(spec.model, spec.context_length)
    stops = stops_of(None, tokenizer)
    if exported:
        engine: Engine = exported
        taken = _taken(engine, tokenizer, stops)
    else:
        model = models.load_model(spec.model, torch.bfloat16).to(models.device()).eval()
        stops = stops_of(model, tokenizer)
        taken = _taken(TransformersEngine(model, spec.context_length), tokenizer, stops)
    memory = process_memory("VmHWM") - before
    if not exported:
        if torch.cuda.is_available():
            memory = torch.cuda.max_memory_allocated() / 2**20
        engine = TransformersEngine(_in_float32(model), spec.context_length)
    parts = examine(spec, run, Examination(engine, tokenizer, spec.settings.max_new_tokens, stops))
    taken |= {
        "bytes": bytes_of_weights(spec.model),
        "memory_mb": round(memory),
    }
    return write(spec.variant, run, parts, taken)


def write(variant: str, run: PayloadRun, parts: "_Parts", taken: dict[str, Any]) -> dict[str, Any]:
    """Write what was measured, as `main` does; `taken`: bytes, memory and speed."""
    figures = parts.figures | taken
    told = [measure.told() for measure in parts.measures]
    evaluation = {"variant": variant, **figures, "measures": told}
    _write_lines(run.output / ANSWERS, parts.answers)
    (run.output / SCORES).write_text(json.dumps([measure.kept() for measure in parts.measures], ensure_ascii=False))
    (run.output / CALIBRATION).write_text(json.dumps(figures["calibration"], indent=1))
    (run.output / "evaluation.json").write_text(json.dumps(evaluation, ensure_ascii=False, indent=1))
    return {
        "answer_accuracy": figures["answer_accuracy"],
        **{f"bits_per_character_{key}": value for key, value in figures["bits_per_character"].items()},
        **{f"{one['task']}: {one['metric']}": one["value"] for one in told},
    }


def examine(spec: Spec, run: PayloadRun, examination: Examiner) -> _Parts:
    """All parts of the evaluation, whoever is asked. Held-out text and losses need a model's own token ids: a server
    is not asked for them."""
    parts = _Parts(run)
    parts.figures = {"bits_per_character": {}, "perplexity": {}, "answer_accuracy": None, "truncated": {}}

    def text_of(language: str, texts: list[str]) -> Callable[[_Parts], None]:
        def measure(own: _Parts) -> None:
            assert isinstance(examination, Examination)
            measured, figures = held_out.measure(examination.engine, examination.tokenizer, language, texts)
            own.measures.append(measured)
            own.figures |= {key: {language: value} for key, value in figures.items()}

        return measure

    cannot_score = []
    for language, texts in validation_texts(spec.mixture, spec.settings.max_documents).items():
        name = f"{held_out.TASK} {language}"
        if isinstance(examination, Examination):
            parts.part(name, text_of(language, texts))
        else:
            cannot_score.append(name)
    for task in spec.settings.tasks:
        assert spec.items is not None, "evaluation_items holds the items of the recipe's tasks"
        items = items_of(spec.items, task.name)
        if not examination.can_score and items and items[0].choices:
            cannot_score.append(task.name)
        else:
            parts.part(task.name, partial(_benchmark, task=task, items=items, examination=examination))
    parts.part(chats_task.TASK, lambda own: _chats(own, spec, examination))
    parts.part(prompts.TASK, lambda own: _prompts(own, spec.settings.prompts, examination))
    parts.part(safety.TASK, lambda own: _safety(own, spec, examination))
    answers = {f"{one['task']} {one['id']}": (one["answer"], one["language"]) for one in parts.answers}
    parts.measures += writing.measures(answers)
    parts.figures["writing_faults"] = writing.examples(answers.values())
    parts.figures["cannot_score"] = cannot_score
    parts.figures["calibration"] = calibration.calibrate(parts.choices, parts.exact)
    return parts


def _benchmark(own: _Parts, task: Benchmark, items: list[Item], examination: Examiner) -> None:
    if not items:
        return
    name = task.name
    if items[0].choices:
        likelihoods, truncated = examination.picks(items)
        picks = {item.key: _pick(scores) for item, scores in zip(items, likelihoods, strict=True)}
        own.choices += [
            calibration.Record(scores, item.answer or 0) for item, scores in zip(items, likelihoods, strict=True)
        ]
        right = {item.key: float(picks[item.key] == item.answer) for item in items}
        note = f"by likelihood, {len(items[0].choices)} choices"
        own.measures.append(mean_of(name, "accuracy", right, scale=100, note=note))
        own.figures["truncated"] = {name: truncated} if truncated else {}
        return
    answers = dict(zip([item.key for item in items], examination.asked([item.prompt for item in items]), strict=True))
    for item in items:
        own.said(name, item.id, item.prompt, answers[item.key], item.language, expected=item.reference)
    said = {key: answer.text.split("\n")[0] for key, answer in answers.items()}
    if task.task == "sib200":
        right = {item.key: float(sib200.topic_said(said[item.key]) == item.reference) for item in items}
        own.measures.append(mean_of(name, "accuracy", right, scale=100, note="as said by the model"))
    else:
        wanted = {item.key: item.reference for item in items}
        own.measures += [translation.chrf(name, said, wanted), translation.bleu(name, said, wanted)]
    own.figures["truncated"] = {name: n} if (n := sum(answer.too_long for answer in answers.values())) else {}


def _chats(own: _Parts, spec: Spec, examination: Examiner) -> None:
    listed = tested_chats(spec.chats, spec.settings.max_chats)
    if not listed:
        return
    chats = {chats_task.identity_of(chat): chat for chat in listed}
    answers = dict(zip(chats, examination.answers([chat[:-1] for chat in chats.values()]), strict=True))
    own.measures += chats_task.measures(chats, answers)
    too_long = sum(answer.too_long for answer in answers.values())
    if isinstance(examination, Examination):
        loss, too_long = chats_task.loss(examination.engine, examination.tokenizer, chats)
        own.measures += [loss] if loss else []
    mistakes = []
    for identity, chat in chats.items():
        answer, wanted = answers[identity], chat[-1]["content"].strip()
        language = "khm_Khmr" if dominant_script(wanted) == "Khmr" else "eng_Latn"
        own.said(chats_task.TASK, identity, chat[-2]["content"], answer, language, expected=wanted)
        if answer.tokens:
            own.exact.append(calibration.Record([answer.mean_likelihood], 0 if answer.text == wanted else -1))
        if answer.text != wanted:
            mistakes.append({"prompt": chat[-2]["content"], "expected": wanted, "answer": answer.text})
    own.figures = {
        "answer_accuracy": 1 - len(mistakes) / len(chats),
        "mistakes": mistakes,
        "chats_too_long": too_long,
        "truncated": {},
    }


def _prompts(own: _Parts, asked: list[Prompt], examination: Examiner) -> None:
    answers = examination.asked([one.prompt for one in asked])
    suite = []
    for number, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
        failed = prompts.failures(prompt, answer.text)
        suite.append({"prompt": prompt.prompt, "answer": answer.text, "failures": failed})
        script = dominant_script(prompt.prompt)
        language = prompt.language or ("khm_Khmr" if script == "Khmr" else "eng_Latn")
        own.said(prompts.TASK, str(number), prompt.prompt, answer, language)
    own.figures["answers"] = suite
    measured = prompts.measure(asked, [answer.text for answer in answers])
    own.measures += [measured] if measured else []


def _safety(own: _Parts, spec: Spec, examination: Examiner) -> None:
    requests = safety.requests()
    given = examination.asked([request.prompt for request in requests])
    answers = {request.id: answer.text for request, answer in zip(requests, given, strict=True)}
    by_rules, by_teacher = safety.verdicts(requests, answers), dict[str, safety.Verdict]()
    own.measures += safety.shares(requests, by_rules)
    if spec.teacher and spec.teachers:
        by_teacher = judge.verdicts(spec.teacher, spec.teachers, requests, answers, own.run.log)
        own.measures += judge.measures(requests, by_teacher, by_rules)
    for request, answer in zip(requests, given, strict=True):
        more = {"teacher": by_teacher[request.id]} if request.id in by_teacher else {}
        verdict = by_rules[request.id]
        own.said(safety.TASK, request.id, request.prompt, answer, request.language, verdict=verdict, **more)


def _pick(scores: Sequence[float]) -> int:
    """The likeliest; none (-1) where the model's figures are no numbers."""
    return -1 if any(score != score for score in scores) else max(range(len(scores)), key=scores.__getitem__)


def _taken(engine: Engine, tokenizer: Any, stops: set[int]) -> dict[str, Any]:
    """Tokens a second that one user gets: the median of rounds that never stop early, and the least and the most."""
    prompt = tokenizer("1 2 3", add_special_tokens=False)["input_ids"]
    limit = min(SPEED_TOKENS, engine.context_length - len(prompt))
    speeds = []
    for _ in range(SPEED_ROUNDS if limit > 0 else 0):
        started = time.perf_counter()
        generated = len(engine.generate([prompt], set(), limit)[0].ids)
        speeds.append(generated / (time.perf_counter() - started))
    spread = [min(speeds), max(speeds)] if speeds else None
    return {"tokens_per_second": median(speeds) if speeds else None, "tokens_per_second_spread": spread}


def _in_float32(model: Any) -> Any:
    """The model in float32, or as it is where a GPU has no room for that."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if free < 4 * model.num_parameters():
            return model
    return torch.nn.Module.float(model)  # transformers' own refuses a quantized model, also one that it has unpacked


def process_memory(line: str) -> float:
    """A line of this process's status, such as VmRSS (now) or VmHWM (the peak), in MB."""
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) / 1024


def _write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
