"""Writes a release: the model that is to be served, and the record of what it is."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from khmer_assets.compression import awq, gguf, prune
from khmer_assets.compression.calibration import MERGED_MODEL
from khmer_assets.evaluation.evaluate import CALIBRATION, SCORES
from khmer_assets.foundation.files import link_file, link_files
from resources.payload import PayloadRun, Refusal

# Speed and memory vary from one measurement to the next; in the record they would make the same model a new release.
FIGURES = ("bits_per_character", "perplexity", "answer_accuracy", "bytes")


class Spec(BaseModel):
    """Folders of the released variant's model, of the benchmark report and of the release bundle."""

    recipe: str
    variant: str
    model: Path
    report: Path
    bundle: Path


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `model/` and `release.json`: recipe, variant, the bundle's SHA-256, the variant's figures, and as `base`
    the digest of the merged_model that it is made from, for adapters are trained on that. Beside them `scores.json`,
    with which the next release is compared, and `calibration.json`, for those who route by confidence.

    Raises `Refusal` when the report does not hold the variant.
    """
    variants = json.loads((spec.report / "report.json").read_text())["variants"]
    if spec.variant not in variants:
        raise Refusal(
            f"the benchmark report holds {', '.join(variants)}, expected {spec.variant} (release.variant) among them; "
            f"materialize {spec.variant.partition(' ')[0]}_evaluation and benchmark_report"
        )
    record = {
        "recipe": spec.recipe,
        "variant": spec.variant,
        "base": _merged_model(spec.model),
        "bundle_sha256": json.loads((spec.bundle / "bundle.json").read_text())["sha256"],
        "figures": {name: variants[spec.variant][name] for name in FIGURES},
    }
    link_files(spec.model, run.output / "model")
    for folder, name in (("scores", SCORES), ("calibration", CALIBRATION)):
        if (spec.report / folder / f"{spec.variant}.json").exists():
            link_file(spec.report / folder / f"{spec.variant}.json", run.output / name)
    (run.output / "release.json").write_text(json.dumps(record, indent=1))
    return {"variant": spec.variant, "figures": record["figures"]}


def _merged_model(variant: Path) -> str:
    for figures in (awq.FIGURES, prune.FIGURES, gguf.FIGURES):
        if (variant / figures).is_file():
            return str(json.loads((variant / figures).read_text())[MERGED_MODEL])
    return variant.name
