"""The search for vLLM's settings: the highest throughput under a limit on the time to the first token.

Each trial starts an engine of its own, beside those that serve, and puts the load of the recipe on it. vLLM's own
settings come first. The best that is found is measured once more, and so are vLLM's own, for the highest of several
figures owes some of its height to chance.
"""

import itertools
import json
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl
from pydantic import BaseModel, Field

from khmer_assets.foundation import plots
from khmer_assets.foundation.files import link_files
from khmer_assets.foundation.processes import stop_all
from khmer_assets.foundation.settings import Name, PositiveFloat, PositiveInt, Settings
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.load.client import FIGURES, LoadClient, Run
from khmer_assets.load.serving_benchmark import held_out_prompts, vllm_python, write_prompts
from khmer_assets.server.engines import Engine
from khmer_assets.server.kept_models import kept_model
from khmer_assets.server.keys import engine_key
from khmer_assets.server.state import MODEL_NAME, EngineValue, ModelServerError, ModelVersion
from resources.payload import PayloadRun, Refusal

if TYPE_CHECKING:
    import optuna


class ServingTuning(Settings):
    """The search for vLLM's settings with the highest throughput at `users` users, `trials` of them.

    The 95th percentile of the time to the first token must not be above `max_ttft_ms`. `search`: values by setting.
    """

    users: PositiveInt = 64
    requests: PositiveInt = 256
    answer_tokens: PositiveInt = 128
    max_ttft_ms: PositiveFloat = 1000
    trials: PositiveInt = 20
    search: Annotated[dict[Name, Annotated[list[EngineValue], Field(min_length=1)]], Field(min_length=1)] = {
        "max_num_seqs": [16, 32, 64, 128, 256, 512],
        "max_num_batched_tokens": [512, 1024, 2048, 4096, 8192, 16384],
        "long_prefill_token_threshold": [0, 256, 1024],
    }


DEFAULTS, SEARCH, BEFORE, AFTER = "vLLM's own", "search", "vLLM's own again", "best again"
STARTUP_TRIALS = 5  # chosen by chance, before the sampler has something to learn from

EngineSettings = dict[str, Any]


class Spec(BaseModel):
    """`release`: its folder; `engine`: settings that are given; `engines`: the folder in which engines are started."""

    release: Path
    max_model_length: int
    engine: EngineSettings
    engines: Path
    chats: Path
    settings: ServingTuning
    seed: int


@dataclass(frozen=True)
class Trial:
    """What was tried, and either `FIGURES` or why there are none."""

    kind: str
    engine: EngineSettings
    figures: dict[str, float] | None
    error: str | None
    seconds: float

    def keeps(self, max_ttft_ms: float) -> bool:
        """Whether it was measured, and the 95th percentile of the time to the first token is within the limit."""
        return self.figures is not None and self.figures["p95_ttft_ms"] <= max_ttft_ms

    @property
    def throughput(self) -> float:
        """Tokens a second."""
        return self.figures["output_throughput"] if self.figures else 0.0


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `tuning.json` (the winner's settings under `engine`), `tuning.md` and a plot.

    A killed search goes on where it was. Raises `Refusal` for a release that vLLM does not serve.
    """
    model = spec.release / "model"
    if not (model / "config.json").is_file():
        raise Refusal(
            f"{model}: found no config.json; only what vLLM serves is tuned, and llama.cpp serves a GGUF file"
        )
    search_space = {name: values for name, values in spec.settings.search.items() if name not in spec.engine}
    if not search_space:
        raise Refusal("nothing to search: serving.engine in the recipe sets all that serving.tuning.search names")
    python, _ = vllm_python()
    # a payload that is told to end must stop its engine; else Python would end at once
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    stop_engines(spec.engines)
    digest = spec.release.name
    link_files(model, kept_model(spec.engines, digest))
    prompts = held_out_prompts(spec.chats, model, spec.max_model_length - spec.settings.answer_tokens)
    file = write_prompts(prompts, run.state)

    with LoadClient(python, {"engine": engine_key(spec.engines)}, run.state / "client.log") as client:

        def measure(engine_settings: EngineSettings) -> dict[str, float]:
            engine = Engine(spec.engines, free_port())
            release = ModelVersion(
                digest=digest, max_model_length=spec.max_model_length, engine={**spec.engine, **engine_settings}
            )
            try:
                engine.start(release)
                engine.wait_until_healthy(run.log)
                result = client.measure(
                    Run(
                        way="engine",
                        address=f"http://127.0.0.1:{engine.port}",
                        model=MODEL_NAME,
                        tokenizer=str(model),
                        prompts=str(file),
                        users=spec.settings.users,
                        requests=spec.settings.requests,
                        answer_tokens=spec.settings.answer_tokens,
                        seed=spec.seed,
                    )
                )
            finally:
                engine.process.stop()
            if result["failed"]:
                raise ModelServerError(f"{result['failed']} of {spec.settings.requests} failed: {result['error']}")
            return {name: result[name] for name in FIGURES}

        def ended(trial: Trial) -> None:
            parameters = {"kind": trial.kind, **spec.engine, **trial.engine}
            run.trial(trial.kind, parameters, trial.figures or {}, trial.seconds, trial.error)
            name = f"{trial.kind} ({named(trial.engine)})" if trial.engine else trial.kind
            run.log(f"{name}: {trial.error or told(trial)}")

        trials = search(run.state / "study.db", spec.settings, search_space, spec.seed, measure, ended)
    shutil.rmtree(spec.engines)
    return report(spec, trials, run)


def search(
    database: Path,
    settings: ServingTuning,
    space: dict[str, list[Any]],
    seed: int,
    measure: Callable[[EngineSettings], dict[str, float]],
    ended: Callable[[Trial], None],
) -> list[Trial]:
    """All trials: vLLM's own settings, those of the search, and where one is better, both once more.

    `measure` raises `ModelServerError` for settings that cannot be measured. Trials in `database` are not repeated.
    Raises `Refusal` when vLLM's own settings cannot be measured.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = f"sqlite:///{database}"
    study = optuna.create_study(storage=storage, study_name="serving", direction="maximize", load_if_exists=True)
    # the seed moves on with the trials, for a search that goes on must not repeat its first draws
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed + len(study.trials))
    for killed in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(killed.number, state=optuna.trial.TrialState.FAIL)

    def attempt(kind: str, engine: EngineSettings, asked: "optuna.Trial") -> None:
        started = time.monotonic()
        figures, error = None, None
        try:
            figures = measure(engine)
        except ModelServerError as refusal:
            error = str(refusal)
        trial = Trial(kind, engine, figures, error, time.monotonic() - started)
        ended(trial)
        asked.set_user_attr("trial", asdict(trial))
        if figures is None:
            study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            asked.set_constraint("time to the first token", figures["p95_ttft_ms"] - settings.max_ttft_ms)
            study.tell(asked, figures["output_throughput"])

    def of(kind: str) -> list[Trial]:
        return [trial for trial in finished(study) if trial.kind == kind]

    if not of(DEFAULTS):
        attempt(DEFAULTS, {}, study.ask())
    if error := of(DEFAULTS)[0].error:
        raise Refusal(
            f"vLLM's own settings cannot be measured: {error}\n"
            "where a second engine has no room beside those that serve, end them with `make stop` and tune then"
        )
    while len(of(SEARCH)) < settings.trials and (asked := new_settings(study, space, seed)):
        attempt(SEARCH, {name: asked.params[name] for name in space}, asked)
    best = max(of(SEARCH), key=lambda trial: rank(trial, settings.max_ttft_ms))
    if rank(best, settings.max_ttft_ms) > rank(of(DEFAULTS)[0], settings.max_ttft_ms):
        for kind, engine in ((BEFORE, {}), (AFTER, best.engine)):
            if not of(kind):
                attempt(kind, engine, study.ask())
    return finished(study)


def finished(study: "optuna.Study") -> list[Trial]:
    """The trials that were not killed."""
    return [Trial(**trial.user_attrs["trial"]) for trial in study.trials if "trial" in trial.user_attrs]


def new_settings(study: "optuna.Study", space: dict[str, list[Any]], seed: int) -> "optuna.Trial | None":
    """A trial with settings that were not tried yet; None when all were.

    What the sampler would have tried twice is replaced by chance.
    """
    import optuna

    tried = [trial.engine for trial in finished(study)]
    asked = study.ask()
    if {name: asked.suggest_categorical(name, values) for name, values in space.items()} not in tried:
        return asked
    study.tell(asked, state=optuna.trial.TrialState.FAIL)
    points = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    if not (untried := [point for point in points if point not in tried]):
        return None
    study.enqueue_trial(random.Random(seed + len(tried)).choice(untried))
    asked = study.ask()
    for name, values in space.items():
        asked.suggest_categorical(name, values)
    return asked


def rank(trial: Trial, max_ttft_ms: float) -> tuple[bool, float]:
    """Higher is better: what keeps the limit before what does not, then by throughput."""
    return trial.keeps(max_ttft_ms), trial.throughput if trial.keeps(max_ttft_ms) else 0.0


def choose(trials: list[Trial], max_ttft_ms: float) -> tuple[Trial, Trial | None, str]:
    """vLLM's own settings, the winner among the others (None when vLLM's own stay), and why, for people.

    Of two measurements each, the better of vLLM's own and the worse of the winner's count: others use the machine too.
    """
    found = {trial.kind: trial for trial in trials}
    if AFTER not in found:
        none_kept = not any(trial.keeps(max_ttft_ms) for trial in trials)
        reason = (
            f"no settings keep the first token within {max_ttft_ms:g} ms"
            if none_kept
            else "no other settings were better"
        )
        return found[DEFAULTS], None, f"vLLM's own settings stay: {reason}."
    again = found[AFTER]
    own = max((found[DEFAULTS], found[BEFORE]), key=lambda trial: rank(trial, max_ttft_ms))
    best = min((t for t in trials if t.engine == again.engine), key=lambda trial: rank(trial, max_ttft_ms))
    if rank(best, max_ttft_ms) <= rank(own, max_ttft_ms):
        return own, None, f"vLLM's own settings stay: {named(again.engine)}, measured again, was no better."
    return own, best, f"The winner is {named(again.engine)}."


def report(spec: Spec, trials: list[Trial], run: PayloadRun) -> dict[str, Any]:
    """Write the files of the artifact; return its figures."""
    goal = spec.settings.max_ttft_ms
    before, after, verdict = choose(trials, goal)
    changes = {}
    if after and before.figures and after.figures:
        for name in ("output_throughput", "p95_ttft_ms"):
            changes[f"{name}_change_percent"] = round(100 * (after.figures[name] / before.figures[name] - 1), 1)
    table = table_of(trials, goal)
    (run.output / "tuning.json").write_text(
        json.dumps(
            {
                "release": spec.release.name,
                "engine": after.engine if after else {},
                "verdict": verdict,
                "settings": spec.settings.model_dump(),
                "before": asdict(before),
                "after": asdict(after) if after else None,
                **changes,
                "trials": [asdict(trial) for trial in trials],
            },
            ensure_ascii=False,
            indent=1,
        )
    )
    figure = picture(trials, after, goal)
    figure.savefig(run.output / "tuning.png", dpi=110)
    told_changes = (
        f" Throughput {changes['output_throughput_change_percent']:+.1f} %, time to the first token (p95) "
        f"{changes['p95_ttft_ms_change_percent']:+.1f} %: of two measurements each, the worse of the winner's "
        "beside the better of vLLM's own."
        if changes
        else ""
    )
    (run.output / "tuning.md").write_text(
        f"# vLLM's settings for release {spec.release.name}\n\n{verdict}{told_changes}\n\n{spec.settings.users} users, "
        f"{spec.settings.answer_tokens} tokens an answer; the first token within {goal:g} ms (p95). Times in ms.\n\n"
        f"{markdown_table(table)}\n\n![](tuning.png)\n"
    )
    return {
        "verdict": verdict,
        "trials": len(trials),
        "tokens_per_second_before": before.throughput,
        "tokens_per_second_after": (after or before).throughput,
        **changes,
        "table": markdown_table(table),
        "plot": plots.as_markdown(figure),
    }


def table_of(trials: list[Trial], max_ttft_ms: float) -> pl.DataFrame:
    """A row a trial."""
    rows = [
        {
            "trial": trial.kind,
            "settings": named(trial.engine),
            "tokens/s": trial.figures and trial.figures["output_throughput"],
            "TTFT p95": trial.figures and trial.figures["p95_ttft_ms"],
            "TPOT p50": trial.figures and trial.figures["p50_tpot_ms"],
            "within the limit": "yes" if trial.keeps(max_ttft_ms) else "no" if trial.figures else None,
            "error": trial.error,
        }
        for trial in trials
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def named(engine: EngineSettings) -> str:
    """EngineSettings in one line."""
    return ", ".join(f"{name} {value}" for name, value in engine.items())


def told(trial: Trial) -> str:
    """A trial's figures in one line."""
    assert trial.figures is not None, "it was measured"
    return f"{trial.throughput:,.0f} tokens/s, first token within {trial.figures['p95_ttft_ms']:,.0f} ms (p95)"


def picture(trials: list[Trial], winner: Trial | None, max_ttft_ms: float) -> Any:
    """Throughput against the time to the first token."""
    figure = plots.new_figure()
    axes = figure.subplots()
    own, others = (DEFAULTS, BEFORE), (SEARCH, AFTER)
    for kinds, label, color in ((others, "search", "C0"), (own, "vLLM's own", "gray")):
        points = [t.figures for t in trials if t.kind in kinds and t.figures]
        x, y = [p["p95_ttft_ms"] for p in points], [p["output_throughput"] for p in points]
        axes.scatter(x, y, color=color, label=label)
    if winner and winner.figures:
        place = (winner.figures["p95_ttft_ms"], winner.throughput)
        axes.scatter(*place, s=140, facecolors="none", edgecolors="C3", label="winner")
    axes.axvline(max_ttft_ms, color="black", linestyle=":", label="limit")
    axes.set(xlabel="time to the first token, p95 (ms)", ylabel="tokens/s", title="Trials")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def stop_engines(folder: Path) -> None:
    """End engines that a killed search has left behind, and forget their models."""
    stop_all(folder, "engine-*")
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
