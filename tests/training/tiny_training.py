"""A training of a tiny model, to be run by one process or by several: the payload that the tests of engines start."""

import json
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from khmer_assets.pretraining.decoder import Decoder
from khmer_assets.training.settings import TrainingSettings
from resources.payload import PayloadRun, Refusal

DISTRIBUTED = True
DECODER = Decoder(
    architecture="gpt2", hidden_size=32, intermediate_size=64, layers=2, attention_heads=4, key_value_heads=4
)
WORDS = ["ផ្ទះ", "ទន្លេ", "យាយ", "ចៅ", "បាយ", "river", "house", "grandmother", " ", "។"]


class Spec(BaseModel):
    """`dropout` of the model; each step lasts at least `seconds_a_step`; a process of this rank refuses; before step
    `breaks_once` the first try ends with an error."""

    settings: TrainingSettings
    steps: int
    dropout: float = 0.0
    seconds_a_step: float = 0.0
    refused_by: int | None = None
    breaks_once: int | None = None


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write the loss curve, and what is returned of the training, to `result.json`."""
    import os

    import numpy as np
    import torch

    from khmer_assets.pretraining.decoder import new_model
    from khmer_assets.tokenizer.bpe import train_bpe
    from khmer_assets.tokenizer.chat_template import wrap
    from khmer_assets.training import engines
    from khmer_assets.training.loop import Schedule, train

    if spec.refused_by == int(os.environ.get("RANK", "0")):
        raise Refusal("given a bad text; expected a good one; change the catalogue")
    torch.set_num_threads(1)
    model = new_model(DECODER, 16, wrap(train_bpe(WORDS * 20, 300)), seed=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = spec.dropout
    settings = spec.settings
    first_try = not (run.state / "checkpoint.pt").exists()
    ids = torch.from_numpy(np.random.default_rng(1).integers(5, 60, (64, 16)))
    labels = torch.where(ids % 3 == 0, -100, ids)  # so that micro-batches have different numbers of labels

    def batch(step: int) -> list[dict[str, torch.Tensor]]:
        time.sleep(spec.seconds_a_step)
        if step == spec.breaks_once and first_try:
            raise RuntimeError("a step breaks")
        rows = (torch.arange(settings.batch_size) + step * settings.batch_size) % len(ids)
        size = engines.micro_batch_size(settings)
        return [{"input_ids": ids[some], "labels": labels[some]} for some in torch.split(rows, size)]

    def evaluate(rank: int, count: int) -> tuple[float, int]:
        share = ids[rank::count]
        return float(model(input_ids=share, labels=share).loss) * share[:, 1:].numel(), share[:, 1:].numel()

    result = train(model, batch, Schedule(settings, spec.steps), run, evaluate)
    if not run.leads:
        return {}
    weight = float(sum(p.double().abs().sum() for p in model.state_dict().values()))
    Path(run.output / "result.json").write_text(json.dumps({"curve": result.curve, "weight": weight} | result.figures))
    return {"weight": weight, **result.figures}
