"""Writes the release of an adapter: what is to be served, and the record of what it is."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from khmer_assets.foundation.files import link_file
from resources.payload import PayloadRun

SERVED_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Spec(BaseModel):
    """Folders of domain_adapter and adapter_evaluation."""

    name: str
    adapter: Path
    evaluation: Path


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `adapter/` and `release.json`: name, digest of the model it was trained on, figures."""
    trained = json.loads((spec.adapter / "training.json").read_text())
    figures = json.loads((spec.evaluation / "evaluation.json").read_text())["with"]
    record = {"name": spec.name, "base": trained["base"], "figures": figures}
    (run.output / "adapter").mkdir()
    for file in SERVED_FILES:
        link_file(spec.adapter / file, run.output / "adapter" / file)
    (run.output / "release.json").write_text(json.dumps(record, indent=1))
    return figures
