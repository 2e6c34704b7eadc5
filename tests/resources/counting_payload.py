"""A payload for the tests: counts up in its state folder, and can be told to refuse, to break or to wait."""

import os
import sys
import time
from typing import Any

from pydantic import BaseModel

from khmer_assets.corpus.semantic import embedder
from resources.payload import PayloadRun, Refusal


class Spec(BaseModel):
    until: int
    refuse: bool = False
    break_at: int | None = None
    seconds_a_step: float = 0.0
    embedder: str | None = None


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    if spec.refuse:
        raise Refusal("given a bad number; expected a good one; change the recipe")
    counter = run.state / "counter"
    start = int(counter.read_text()) if counter.exists() else 0
    for number in range(start, spec.until):
        if number == spec.break_at:
            raise RuntimeError("broken inside")
        time.sleep(spec.seconds_a_step)
        counter.write_text(str(number + 1))
        run.log(f"counted {number + 1}")
    if spec.embedder is not None:
        from transformers import AutoModelForCausalLM

        assert AutoModelForCausalLM and "sklearn.metrics" not in sys.modules
        assert embedder(spec.embedder)(["មេឃ"]).shape[0] == 1
    (run.output / "count.txt").write_text(str(spec.until))
    return {"started_at": start, "process": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS", "all")}
