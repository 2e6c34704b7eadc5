"""The table of exports: medians of rounds, losses with intervals, reasons where a variant cannot run."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from khmer_assets.compression import gguf, onnx
from khmer_assets.evaluation import exports
from khmer_assets.evaluation.evaluate import SCORES
from khmer_assets.evaluation.measures import Measure
from resources.payload import PayloadRun, Refusal
from tests.tiny_model import save_tiny_model

VISIT = {
    "memory_mb": 10.0,
    "memory_mb_long": 12.0,
    "tokens_per_second": 100.0,
    "tokens_per_second_of_users": 500.0,
    "first_token_ms": 3.0,
}


def bits(each: float) -> list[Measure]:
    sums = {str(number): [each * (20 + number), 20.0 + number] for number in range(12)}
    return [
        Measure("held-out text khm", "bits a character", "ratio", sums, higher_is_better=False),
        Measure("chats", "exact match", "ratio", {"a": [1.0, 1.0]}, scale=100),
    ]


def evaluation(folder: Path, each: float) -> Path:
    folder.mkdir(parents=True)
    (folder / SCORES).write_text(json.dumps([measure.kept() for measure in bits(each)]))
    return folder


def figures(tmp_path, **losses: float) -> dict:
    scores = {name: exports._scores(evaluation(tmp_path / name, 2.0 * (1 + loss))) for name, loss in losses.items()}
    whole = next(iter(scores.values()))
    common = {"runtime": "transformers", "threads": 1, "bytes": 5e6, "long": 256}
    return {
        name.replace("_", " ", 1): {
            **common,
            "evaluation": name,
            **exports.summary([VISIT]),
            "quality": exports.quality(whole, own),
        }
        for name, own in scores.items()
    }


def test_a_speed_is_the_median_of_the_rounds_and_its_spread_is_told():
    rounds = [{**VISIT, "tokens_per_second": speed} for speed in (90.0, 2.0, 100.0)]
    found = exports.summary(rounds)
    assert found["tokens_per_second"] == 90.0
    assert found["spread"]["tokens_per_second"] == [2.0, 100.0]
    assert found["memory_mb"] == 10.0


def test_a_variant_that_failed_in_one_round_has_the_reason_alone():
    assert exports.summary([VISIT, {"failed": "no memory"}]) == {"failed": "no memory"}


def test_a_loss_is_a_share_of_the_bits_of_the_whole_model(tmp_path):
    found = figures(tmp_path, merged=0.0, awq=0.03)
    (loss,) = exports.losses(found["awq"]).values()
    assert loss == pytest.approx(0.03, abs=1e-4)
    told = found["awq"]["quality"]["bits/char khm"]
    assert told["loss_low"] == pytest.approx(0.03, abs=1e-4), "all texts lost the same"
    assert exports.losses(found["merged"]) == {"bits/char khm": 0.0}


def test_each_form_has_its_own_limit(tmp_path):
    found = figures(tmp_path, merged=0.0, pruned=0.09, awq=0.02, gguf_Q4_K_M=0.019, gguf_Q8_0=0.006)
    lost = exports.too_much_lost(found)
    assert list(lost) == ["awq", "gguf Q8_0"]
    assert lost["awq"] == "lost 2.0% of bits/char khm, at most 1.0% expected"


def test_the_table_has_a_row_a_variant_and_its_reason_where_it_failed(tmp_path):
    found = figures(tmp_path, merged=0.0, onnx=0.001)
    found["onnx"] = {name: found["onnx"][name] for name in ("runtime", "threads", "bytes", "long", "quality")}
    found["onnx"]["failed"] = "RuntimeError: no kernel"
    rows = exports.table(found).to_dicts()
    assert rows[0]["tokens/s, one user"] == "100 (100 to 100)"
    assert rows[0]["at 256 tokens (MB)"] == "12"
    assert rows[0]["loss khm"] is None
    assert rows[1]["memory at rest (MB)"] == "RuntimeError: no kernel"
    assert rows[1]["tokens/s, one user"] is None
    assert rows[1]["loss khm"].startswith("+0.1%")


def test_the_report_shows_the_table_of_its_own_evaluations_alone(tmp_path):
    found = figures(tmp_path, merged=0.0, awq=0.001)
    (tmp_path / exports.FIGURES).write_text(json.dumps(found))
    evaluations = {"merged": tmp_path / "merged", "awq": tmp_path / "awq"}
    shown = exports.shown(tmp_path, evaluations)
    assert shown is not None
    assert shown[0] == "Exports" and "prompt of 255 tokens" in shown[1] and shown[2].height == 2
    assert exports.shown(tmp_path, evaluations | {"awq": tmp_path / "newer"}) is None
    assert exports.shown(None, evaluations) is None


@pytest.mark.slow
def test_variants_are_measured_in_turn_and_one_that_cannot_be_run_has_its_reason(tmp_path, monkeypatch):
    whole = save_tiny_model(tmp_path / "whole")
    models = {"merged": whole}
    for name in ("gguf Q8_0", "gguf Q4_K_M", "onnx"):
        models[name] = tmp_path / name
        models[name].mkdir()
    gguf.write_float16(whole, models["gguf Q8_0"] / "Q8_0.gguf")
    (models["gguf Q4_K_M"] / "Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(40))
    onnx.write(whole, models["onnx"] / onnx.FILE)
    evaluations = {name: evaluation(tmp_path / "evaluations" / name, 2.0) for name in models}
    monkeypatch.setattr(exports, "ROUNDS", 2)
    monkeypatch.setattr(exports, "cores", lambda: 1)  # threads that wait for each other take long on a busy machine
    visited: list[tuple[str, int]] = []
    visit = exports._in_a_process
    monkeypatch.setattr(
        exports, "_in_a_process", lambda *a: visited.append((a[1].model.name, a[1].prompt)) or visit(*a)
    )
    run = PayloadRun(tmp_path / "work")
    spec = exports.Spec(models=models, evaluations=evaluations, context_length=128)
    exports.main(spec, run)

    found = json.loads((run.output / exports.FIGURES).read_text())
    assert [name for name, prompt in visited if prompt == 127] == [
        *("whole", "gguf Q8_0", "gguf Q4_K_M", "onnx"),
        *("onnx", "gguf Q4_K_M", "gguf Q8_0", "whole"),
    ]
    assert "ValueError" in found["gguf Q4_K_M"]["failed"]
    for name in ("merged", "gguf Q8_0", "onnx"):
        assert 1 < found[name]["memory_mb"] < 200, name
        assert found[name]["memory_mb_long"] > 1
        assert found[name]["tokens_per_second_of_users"] > 0
        assert found[name]["first_token_ms"] > 0
    assert "| gguf Q4_K_M | llama.cpp |" in (run.output / exports.TABLE).read_text()

    visited.clear()
    exports.main(spec, PayloadRun(tmp_path / "work"))
    assert visited == [], "what was measured before a kill is not measured again"
    broken = {"gguf Q4_K_M": models["gguf Q4_K_M"]}
    (models["gguf Q4_K_M"] / "config.json").write_text('{"vocab_size": 9}')
    with pytest.raises(Refusal, match="no variant could be run: ValueError"):
        exports.main(
            exports.Spec(models=broken, evaluations=evaluations, context_length=64), PayloadRun(tmp_path / "b")
        )


class Ends:
    """Ends the process that reads it."""

    def __reduce__(self):
        return os.abort, ()


def test_a_process_that_is_killed_is_a_reason_and_not_the_end():
    found = exports._in_a_process(multiprocessing.get_context("spawn"), Ends())
    assert found["failed"].startswith("it was killed (SIGABRT)")
