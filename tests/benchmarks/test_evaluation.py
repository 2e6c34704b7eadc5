"""The evaluation picks and says what EleutherAI's harness does, with the same model on the same files."""

import pytest

from benchmarks.evaluation import compare
from khmer_assets.evaluation.items import Benchmark
from tests.tiny_model import save_tiny_model

pytestmark = pytest.mark.slow


def test_every_pick_every_answer_and_chrf_are_those_of_lm_eval(tmp_path):
    model = save_tiny_model(tmp_path / "model", max_position_embeddings=2048)
    tasks = [
        Benchmark(task="belebele", language="eng_Latn"),
        Benchmark(task="belebele", shots=1),
        Benchmark(task="sib200"),
        Benchmark(task="flores200", language="eng_Latn"),
    ]
    figures, rows = compare(model, tasks)
    assert {row["task"]: row["alike"] for row in rows} == {task.name: 20 for task in tasks}
    assert (figures["equal_picks"], figures["chrf_difference"]) == (1.0, 0.0)
