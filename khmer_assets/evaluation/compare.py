"""Measures open models, a folder of somebody's, or what a server serves, on what the recipe's variants are measured on.

The models are named in a file, a line each, to which `khmer evaluate` adds. What has been measured with the same
settings on the same items is not measured again.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from khmer_assets.base_model import bring_in
from khmer_assets.evaluation import evaluate
from khmer_assets.evaluation.remote import RemoteExamination, is_address
from khmer_assets.foundation.files import link_files
from khmer_assets.foundation.settings import digest_of
from khmer_assets.teachers.settings import Teacher
from khmer_assets.training.models import BASE_RECORD
from resources.payload import PayloadRun, Refusal


class Spec(BaseModel):
    """`models`: names on the Hugging Face hub, folders with an absolute path, or addresses (`remote.py`). `former`:
    what this has written before. The rest is as in `evaluate.Spec`."""

    models: list[str]
    former: Path | None
    mixture: Path
    chats: Path
    items: Path | None
    settings: evaluate.Evaluation
    context_length: int
    teacher: Teacher | None = None
    teachers: Path | None = None


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write a folder a model, each as `evaluate.main` writes it. Raises `Refusal` for a model that cannot be used."""
    if not spec.models:
        raise Refusal("there is no model to compare with; `khmer evaluate MODEL` names one and measures it")
    figures: dict[str, Any] = {}
    for model in spec.models:
        key = digest_of([model, spec.model_dump(mode="json", exclude={"models", "former"})])[:16]
        done = run.state / key / "output" / "evaluation.json"
        before = spec.former / key if spec.former else None
        if before is not None and (before / "evaluation.json").exists():
            link_files(before, run.output / key)
        else:
            if not done.exists():
                run.log(f"measuring {model}")
                _measure(spec, model, run.state / key)
            link_files(done.parent, run.output / key)
        told = json.loads((run.output / key / "evaluation.json").read_text())
        figures |= {f"{model} {one['task']}: {one['metric']}": one["value"] for one in told["measures"]}
    return figures


def _measure(spec: Spec, model: str, folder: Path) -> None:
    run, brought = PayloadRun(folder), PayloadRun(folder / "model")
    served, has_template = is_address(model), True
    if not served:
        bring_in.main(bring_in.Spec(model=model, revision=None), brought)
        has_template = not json.loads((brought.output / BASE_RECORD).read_text())["chat_marks_are_new"]
    asked = evaluate.Spec(
        variant=model,
        model=brought.output,
        tokenizer=brought.output,
        mixture=spec.mixture,
        chats=spec.chats,
        items=spec.items,
        settings=spec.settings,
        context_length=spec.context_length,
        has_template=has_template,
        teacher=spec.teacher,
        teachers=spec.teachers,
    )
    if served:
        examination = RemoteExamination(model, spec.settings.max_new_tokens, spec.context_length)
        taken = dict.fromkeys(("bytes", "memory_mb", "tokens_per_second", "tokens_per_second_spread"))
        evaluate.write(model, run, evaluate.examine(asked, run, examination), taken)
    else:
        evaluate.main(asked, run)


def models_in(file: Path) -> list[str]:
    """The models that are named in the file, without those that come again."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return list(dict.fromkeys(filter(None, map(str.strip, lines))))
