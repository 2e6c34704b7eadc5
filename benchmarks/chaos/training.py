"""The pretraining payload as it is killed here: it tells of every step, in a file that a kill leaves behind."""

from typing import Any

import torch

from benchmarks.chaos.kills import PROGRESS
from khmer_assets.pretraining import train
from khmer_assets.training import loop
from resources.payload import PayloadRun

Spec = train.Spec


def main(spec: train.Spec, run: PayloadRun) -> dict[str, Any]:
    """Train as the asset does."""
    loop.REPORT_SECONDS = 0.0
    torch.set_num_threads(1)  # else the sums, and with them the model, may differ
    with (run.state.parent.parent / PROGRESS).open("a") as progress:
        vars(run)["log"] = lambda text: print(text, file=progress, flush=True)
        return train.main(spec, run)
