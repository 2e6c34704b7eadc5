"""The one table of all exports: what each takes (disk, memory), gives (speed) and costs (quality).

Speed is measured in rounds over all variants, forth and back, each time in a new process: what else the machine does
in a minute meets every variant, the median of the rounds tells of it least, and the spread tells how much there was.
Quality is not measured here, but read from the variants' evaluations.
"""

import json
import multiprocessing
import os
import random
import select
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.evaluation.engines import Engine, TransformersEngine
from khmer_assets.evaluation.evaluate import SCORES, process_memory
from khmer_assets.evaluation.export_engines import LlamaCppUsers, bytes_of_weights, export_engine, runtime_of
from khmer_assets.evaluation.measures import Measure, difference, interval, read
from khmer_assets.evaluation.tasks import chats, held_out
from khmer_assets.foundation.files import write_whole
from khmer_assets.foundation.processes import how_it_ended
from khmer_assets.foundation.settings import digest_of
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.foundation.workers import cores
from resources.payload import PayloadRun, Refusal

FIGURES, TABLE = "exports.json", "exports.md"
ROUNDS = 5
USERS = 8
QUESTION, ANSWER, TRIAL = 16, 48, 8  # tokens; an answer of a trial is for the choice of the number of threads
LONG = 2_000  # tokens, or the model's context where that is shorter
PRELOADED = ["torch", "transformers.models.auto.modeling_auto"]
# The share of bits a character that a variant may need more than the whole model.
MAX_LOSS = {
    "pruned": 0.10,
    "awq": 0.01,
    "gguf Q4_K_M": 0.02,
    "gguf Q5_K_M": 0.01,
    "gguf Q8_0": 0.005,
    "ctranslate2": 0.01,
    "onnx": 0.01,
}
SPEEDS = {
    "tokens_per_second": "tokens/s, one user",
    "tokens_per_second_of_users": f"tokens/s, {USERS} users",
    "first_token_ms": "first token (ms)",
}


class Spec(BaseModel):
    """Folders of the models and of their evaluations by variant, of which the first is the whole model."""

    models: dict[str, Path]
    evaluations: dict[str, Path]
    context_length: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `exports.json` (figures by variant) and `exports.md` (the table). A variant that cannot be run has its
    reason in the place of its figures; raises `Refusal` where none can."""
    vocabulary = json.loads((next(iter(spec.models.values())) / "config.json").read_text())["vocab_size"]
    long = min(LONG, spec.context_length)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def measured(variant: str, name: str, *how: int) -> dict[str, Any]:
        file = run.state / f"{digest_of([variant, name])[:16]}.json"
        if not file.exists():
            found = _in_a_process(context, Visit(spec.models[variant], vocabulary, long, *how))
            write_whole(file, json.dumps(found))
        return dict(json.loads(file.read_text()))

    run.log("choosing the number of threads")
    threads = {}
    for variant in spec.models:
        tried = {count: measured(variant, f"{count} threads", count, TRIAL, 1) for count in sorted({1, cores()})}
        threads[variant] = max(tried, key=lambda count: tried[count].get("tokens_per_second", 0.0))
    visits: dict[str, list[dict[str, Any]]] = {variant: [] for variant in spec.models}
    for number in range(ROUNDS):
        run.log(f"round {number + 1} of {ROUNDS}")
        turn = list(spec.models)
        for variant in turn if number % 2 == 0 else reversed(turn):
            visits[variant].append(measured(variant, f"round {number}", threads[variant], ANSWER, long - 1))
    scores = {variant: _scores(folder) for variant, folder in spec.evaluations.items()}
    whole = next(iter(spec.models))
    figures: dict[str, dict[str, Any]] = {}
    for variant, folder in spec.models.items():
        taken = summary(visits[variant])
        figures[variant] = {
            "evaluation": spec.evaluations[variant].name,
            "runtime": runtime_of(folder),
            "threads": threads[variant],
            "bytes": bytes_of_weights(folder),
            "long": long,
            **taken,
            "quality": quality(scores[whole], scores[variant]),
        }
    failed = {variant: own["failed"] for variant, own in figures.items() if "failed" in own}
    for variant, reason in failed.items():
        run.log(f"{variant} could not be run: {reason}")
    if len(failed) == len(figures):
        raise Refusal(f"no variant could be run: {next(iter(failed.values()))}")
    markdown = markdown_table(table(figures))
    (run.output / FIGURES).write_text(json.dumps(figures, ensure_ascii=False, indent=1))
    (run.output / TABLE).write_text(f"{markdown}\n\n{about(figures)}\n", encoding="utf-8")
    return {"exports": markdown, **{f"{v}: loss {k}": q for v, own in figures.items() for k, q in losses(own).items()}}


@dataclass(frozen=True)
class Visit:
    """What a process measures: a model with ids below `vocabulary`, ready for `long` tokens, with so many threads;
    answers of so many tokens, and at last one token after a prompt of so many."""

    model: Path
    vocabulary: int
    long: int
    threads: int
    answer: int
    prompt: int


def _in_a_process(context: Any, asked: Visit) -> dict[str, Any]:
    """What `visit` measures in a process that has loaded nothing but libraries; or why it could not, as `failed`."""
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_visit, args=(sending, asked))
    process.start()
    sending.close()
    try:
        return dict(receiving.recv())
    except EOFError:
        process.join()
        return {"failed": f"it {how_it_ended(process.exitcode or 0)}"}
    finally:
        process.join()


def _visit(answer: Connection, asked: Visit) -> None:
    """The process that `_in_a_process` starts."""
    threading.Thread(target=_end_with_who_asked, args=(answer.fileno(),), daemon=True).start()
    try:
        answer.send(visit(asked))
    except Exception as error:  # whatever the library of an export raises
        answer.send({"failed": f"{type(error).__name__}: {error}"[:300]})


def _end_with_who_asked(pipe: int) -> None:
    """Nobody waits for what a killed run has asked: it would take the machine from the next one."""
    poll = select.poll()
    poll.register(pipe, 0)
    poll.poll()  # until the reading end is closed
    os._exit(1)


def visit(asked: Visit) -> dict[str, float]:
    """Memory (MB) with the model alone and while the prompt is read, the time to the first token after it, and tokens a
    second of one user and of `USERS`, greedily and without an end."""
    import torch

    torch.set_num_threads(asked.threads)
    draw = random.Random(0)
    answer = min(asked.answer, asked.long // 2)
    question = max(1, min(QUESTION, asked.long - answer))
    prompts = [[draw.randrange(asked.vocabulary) for _ in range(question)] for _ in range(USERS)]
    _import(asked.model)
    before = process_memory("VmRSS")
    engine = _opened(asked, question + answer, USERS)
    engine.generate(prompts[:1], set(), 1)  # what is made at the first use is no part of the speed
    found = {"memory_mb": _on_accelerator("memory_allocated") or process_memory("VmRSS") - before}
    for name, users in (("tokens_per_second", 1), ("tokens_per_second_of_users", USERS)):
        started = time.perf_counter()
        said = engine.generate(prompts[:users], set(), answer)
        found[name] = sum(len(one.ids) for one in said) / (time.perf_counter() - started)
    if isinstance(engine, LlamaCppUsers):  # it holds from the beginning what each user may fill
        del engine
        engine = _opened(asked, asked.long, 1)
    long = [draw.randrange(asked.vocabulary) for _ in range(asked.prompt)]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what was before
    _on_accelerator("reset_peak_memory_stats")
    started = time.perf_counter()
    engine.generate([long], set(), 1)
    found["first_token_ms"] = 1000 * (time.perf_counter() - started)
    found["memory_mb_long"] = _on_accelerator("max_memory_allocated") or process_memory("VmHWM") - before
    return found


def _import(model: Path) -> None:
    """The library that runs the model, so that its own memory is not taken for the model's."""
    import importlib

    runtime = runtime_of(model)
    if runtime == "transformers":
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

        MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(model))]
    else:
        importlib.import_module({"llama.cpp": "llama_cpp"}.get(runtime, runtime.lower()))


def _opened(asked: Visit, short: int, users: int) -> Engine | LlamaCppUsers:
    """The model; where room for what is said is taken beforehand, for `users` of `short` tokens each."""
    import torch

    from khmer_assets.training.models import device, load_model

    if runtime_of(asked.model) == "llama.cpp":
        return LlamaCppUsers(next(asked.model.glob("*.gguf")), short, users, asked.threads)
    engine = export_engine(asked.model, asked.long, asked.threads)
    return engine or TransformersEngine(load_model(asked.model, torch.bfloat16).to(device()).eval(), asked.long)


def _on_accelerator(figure: str) -> float:
    """A figure of the accelerator's memory in MB, 0 where there is none or nothing is on it."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    return float(getattr(torch.cuda, figure)() or 0) / 2**20


def summary(visits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure of the rounds and, of speeds, the least and the most; or why one failed."""
    for visit in visits:
        if "failed" in visit:
            return {"failed": visit["failed"]}
    found: dict[str, Any] = {name: median(visit[name] for visit in visits) for name in visits[0]}
    spreads = {name: [min(values), max(values)] for name in SPEEDS if (values := [visit[name] for visit in visits])}
    return {**found, "spread": spreads}


def quality(whole: Mapping[str, Measure], variant: Mapping[str, Measure]) -> dict[str, dict[str, float]]:
    """The measures that stand in the table, by name: value, low and high of its interval; of bits a character also the
    `loss`, the share by which they are more than the whole model's, and the interval of that on the same items."""
    found = {}
    for name, measure in variant.items():
        value, low, high = interval(measure)
        found[name] = {"value": value, "low": low, "high": high}
        if measure.task.startswith(held_out.TASK) and name in whole:
            base, change = interval(whole[name])[0], difference(whole[name], measure)
            if change is not None and base:
                bounds = {"loss": change.change, "loss_low": change.low, "loss_high": change.high}
                found[name] |= {key: bound / base for key, bound in bounds.items()}
    return found


def _scores(evaluation: Path) -> dict[str, Measure]:
    """What an evaluation measured of held-out text, and of chats by chrF++, by the name in the table."""
    file = evaluation / SCORES
    measures = [read(kept) for kept in json.loads(file.read_text())] if file.exists() else []
    found = {}
    for one in measures:
        if one.task.startswith(held_out.TASK):
            found[f"bits/char {one.task.removeprefix(held_out.TASK).strip()}"] = one
        elif (one.task, one.metric) == (chats.TASK, "chrF++"):
            found["chats, chrF++"] = one
    return found


def losses(figures: Mapping[str, Any]) -> dict[str, float]:
    """By the names in the table, the share of bits a character that a variant lost."""
    return {name: told["loss"] for name, told in figures["quality"].items() if "loss" in told}


def too_much_lost(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The variants that lost more than `MAX_LOSS` in a language, and how much."""
    found = {}
    for variant, own in figures.items():
        lost = {name: loss for name, loss in losses(own).items() if loss > MAX_LOSS.get(variant, 1.0)}
        if lost:
            told = ", ".join(f"{loss:.1%} of {name}" for name, loss in lost.items())
            found[variant] = f"lost {told}, at most {MAX_LOSS[variant]:.1%} expected"
    return found


def table(figures: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """A row a variant, for people."""
    rows = []
    for variant, own in figures.items():
        row = {
            "variant": variant,
            "runs in": own["runtime"],
            "threads": own["threads"],
            "MB on disk": own["bytes"] / 1e6,
        }
        if "failed" in own:
            row["memory at rest (MB)"] = own["failed"]
        else:
            row["memory at rest (MB)"] = f"{own['memory_mb']:,.0f}"
            row[f"at {own['long']:,} tokens (MB)"] = f"{own['memory_mb_long']:,.0f}"
            row |= {told: _spread(own[name], *own["spread"][name]) for name, told in SPEEDS.items()}
        for name, one in own["quality"].items():
            digits = 1 if one["value"] >= 10 else 3
            row[name] = f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"
            if "loss" in one and variant != next(iter(figures)):
                row[f"loss {name.rpartition(' ')[2]}"] = (
                    f"{one['loss']:+.1%} ({one['loss_low']:+.1%} to {one['loss_high']:+.1%})"
                )
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return pl.DataFrame([{column: row.get(column) for column in columns} for row in rows])


def _spread(value: float, low: float, high: float) -> str:
    return f"{value:,.0f} ({low:,.0f} to {high:,.0f})"


def about(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """What a reader must know of the table."""
    long = next(iter(figures.values()))["long"]
    return (
        f"Speeds are the median of {ROUNDS} rounds over all variants in turn, in brackets the slowest and the fastest; "
        f"each user asks {QUESTION} tokens and gets {ANSWER}. The first token is that after a prompt of {long - 1:,} "
        "tokens. Each variant has one thread or one a core, whichever was faster. Memory is that of the model and of "
        "what it holds, without its library. Of quality, brackets hold the bounds of 95 % of 1,000 draws of the items; "
        f"a loss is against {next(iter(figures))} on the same items."
    )


def shown(folder: Path | None, evaluations: Mapping[str, Path]) -> tuple[str, str, pl.DataFrame] | None:
    """Heading, explanation and table for the report; None where the exports were not compared, or other ones than
    those of these evaluations (by variant)."""
    if folder is None:
        return None
    figures = json.loads((folder / FIGURES).read_text())
    if {variant: own["evaluation"] for variant, own in figures.items()} != {v: e.name for v, e in evaluations.items()}:
        return None
    return "Exports", about(figures), table(figures)
