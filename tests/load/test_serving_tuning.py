"""The search finds the fastest settings within the limit of latency, goes on after a kill, and says what came of it."""

import json
import subprocess
import sys

import pytest

from khmer_assets.foundation.home import PROJECT
from khmer_assets.load import serving_tuning
from khmer_assets.load.client import FIGURES
from khmer_assets.load.serving_tuning import AFTER, BEFORE, DEFAULTS, SEARCH, ServingTuning, Spec, Trial, choose, search
from khmer_assets.server.state import EngineValue, ModelServerError
from resources.payload import PayloadRun, Refusal

SPACE: dict[str, list[EngineValue]] = {"max_num_seqs": [8, 16, 32], "max_num_batched_tokens": [64, 512]}
SETTINGS = ServingTuning(users=4, requests=8, answer_tokens=8, max_ttft_ms=100, trials=6, search=SPACE)
OWN = {"output_throughput": 100.0, "p95_ttft_ms": 50.0}


def figures(throughput: float, ttft: float) -> dict[str, float]:
    return {name: 1.0 for name in FIGURES} | {"output_throughput": throughput, "p95_ttft_ms": ttft}


def machine(engine):
    """More sequences at a time are faster, and 32 answer too late; vLLM refuses 32 with 64 tokens a step."""
    if engine == {"max_num_seqs": 32, "max_num_batched_tokens": 64}:
        raise ModelServerError("vLLM refuses the model: max_num_batched_tokens (64) is too small")
    seqs = engine.get("max_num_seqs", 10)
    return figures(10.0 * seqs, 500.0 if seqs == 32 else 50.0)


def searched(tmp_path, measure=machine, settings=SETTINGS):
    ended = []
    trials = search(tmp_path / "study.db", settings, settings.search, 7, measure, ended.append)
    assert ended == trials
    return trials


def test_the_fastest_within_the_limit_wins_and_is_measured_again_beside_vllms_own(tmp_path):
    trials = searched(tmp_path)
    assert [trial.kind for trial in trials] == [DEFAULTS, *[SEARCH] * 6, BEFORE, AFTER]
    assert trials[0].engine == {} == trials[-2].engine
    before, after, verdict = choose(trials, SETTINGS.max_ttft_ms)
    assert before.engine == {}
    assert after.engine["max_num_seqs"] == 16
    assert verdict.startswith("The winner is max_num_seqs 16")


def test_no_settings_are_tried_twice_and_the_search_ends_with_them(tmp_path):
    tried = [
        trial.engine
        for trial in searched(tmp_path, settings=SETTINGS.model_copy(update={"trials": 50}))
        if trial.kind == SEARCH
    ]
    assert len(tried) == 6
    assert all(tried.count(engine) == 1 for engine in tried)


def test_settings_that_vllm_refuses_are_a_failed_trial_with_its_reason(tmp_path):
    (failed,) = [trial for trial in searched(tmp_path) if trial.error]
    assert failed.figures is None
    assert "max_num_batched_tokens (64) is too small" in failed.error


def test_where_not_even_vllms_own_settings_work_nothing_is_searched(tmp_path):
    asked = []

    def no_room(engine):
        asked.append(engine)
        raise ModelServerError("no memory")

    with pytest.raises(Refusal, match=r"no memory\n.*`make stop`"):
        searched(tmp_path, no_room)
    assert asked == [{}]


def test_vllms_own_settings_stay_when_none_is_better(tmp_path):
    trials = searched(tmp_path, lambda engine: figures(100.0 - len(engine), 50.0))
    assert [trial.kind for trial in trials] == [DEFAULTS, *[SEARCH] * 6], "there is nothing to measure again"
    _, after, verdict = choose(trials, SETTINGS.max_ttft_ms)
    assert after is None
    assert verdict == "vLLM's own settings stay: no other settings were better."


def test_vllms_own_settings_stay_when_all_are_too_slow(tmp_path):
    trials = searched(tmp_path, lambda engine: figures(200.0 if engine else 100.0, 101.0))
    _, after, verdict = choose(trials, SETTINGS.max_ttft_ms)
    assert after is None
    assert "no settings keep the first token within 100 ms" in verdict


def test_settings_that_keep_the_limit_win_over_faster_ones_that_do_not(tmp_path):
    trials = searched(tmp_path, lambda engine: figures(60.0, 90.0) if engine else figures(100.0, 400.0))
    _, after, _ = choose(trials, SETTINGS.max_ttft_ms)
    assert after is not None


@pytest.mark.parametrize(
    ("own", "again"),
    [
        (figures(100.0, 50.0), figures(99.0, 50.0)),
        (figures(100.0, 50.0), figures(300.0, 400.0)),
        (figures(160.0, 50.0), figures(300.0, 50.0)),
    ],
)
def test_what_was_better_only_once_does_not_win(own, again):
    engine = {"max_num_seqs": 16}
    trials = [
        Trial(DEFAULTS, {}, figures(100.0, 50.0), None, 1.0),
        Trial(SEARCH, engine, figures(150.0, 50.0), None, 1.0),
        Trial(BEFORE, {}, own, None, 1.0),
        Trial(AFTER, engine, again, None, 1.0),
    ]
    _, after, verdict = choose(trials, 100)
    assert after is None
    assert verdict == "vLLM's own settings stay: max_num_seqs 16, measured again, was no better."


def test_the_gain_is_told_from_the_worse_figures_of_the_winner_and_the_better_ones_of_vllms_own():
    engine = {"max_num_seqs": 16}
    trials = [
        Trial(DEFAULTS, {}, figures(100.0, 50.0), None, 1.0),
        Trial(SEARCH, engine, figures(150.0, 50.0), None, 1.0),
        Trial(BEFORE, {}, figures(40.0, 90.0), None, 1.0),
        Trial(AFTER, engine, figures(170.0, 40.0), None, 1.0),
    ]
    before, after, _ = choose(trials, 100)
    assert (before, after) == (trials[0], trials[1])


def test_a_killed_search_goes_on_where_it_was(tmp_path):
    script = f"""
import os
from pathlib import Path
from tests.load.test_serving_tuning import SETTINGS, machine, search

measured = []
def killed_in_the_fourth(engine):
    measured.append(engine)
    if len(measured) == 4:
        os.kill(os.getpid(), 9)
    return machine(engine)

search(Path({str(tmp_path / "study.db")!r}), SETTINGS, SETTINGS.search, 7, killed_in_the_fourth, print)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    measured = []

    def counting(engine):
        measured.append(engine)
        return machine(engine)

    trials = search(tmp_path / "study.db", SETTINGS, SETTINGS.search, 7, counting, lambda trial: None)
    assert len(killed.stdout.splitlines()) == 3
    assert len(measured) == len(trials) - 3, "what was measured before the kill is not measured again"
    assert [trial.kind for trial in trials] == [DEFAULTS, *[SEARCH] * 6, BEFORE, AFTER]
    assert all(trials.count(trial) == 1 for trial in trials)


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "release" / "model").mkdir(parents=True)
    (tmp_path / "release" / "model" / "config.json").write_text("{}")
    return Spec(
        release=tmp_path / "release",
        max_model_length=256,
        engine={},
        engines=tmp_path / "tuning",
        chats=tmp_path,
        settings=SETTINGS,
        seed=7,
    )


def test_the_report_holds_the_winner_and_what_changed(spec, tmp_path):
    run = PayloadRun(tmp_path)
    results = serving_tuning.report(spec, searched(tmp_path), run)
    written = json.loads((run.output / "tuning.json").read_text())
    assert written["engine"]["max_num_seqs"] == 16
    assert written["output_throughput_change_percent"] == results["output_throughput_change_percent"] == 60.0
    assert len(written["trials"]) == 9
    page = (run.output / "tuning.md").read_text()
    assert "Throughput +60.0 %" in page
    assert "is too small" in page, "a failed trial is told too"
    assert (run.output / "tuning.png").stat().st_size > 0


def test_a_release_for_llama_cpp_is_refused(spec, tmp_path):
    (tmp_path / "release" / "model" / "config.json").unlink()
    with pytest.raises(Refusal, match=r"no config\.json; only what vLLM serves is tuned"):
        serving_tuning.main(spec, PayloadRun(tmp_path))


def test_settings_that_the_recipe_gives_are_not_searched(spec, tmp_path):
    given = spec.model_copy(update={"engine": {"max_num_seqs": 4, "max_num_batched_tokens": 64}})
    with pytest.raises(Refusal, match=r"nothing to search: serving\.engine"):
        serving_tuning.main(given, PayloadRun(tmp_path))
