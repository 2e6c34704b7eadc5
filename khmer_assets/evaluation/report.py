"""The benchmark report: every variant, and the models compared with them, on the same items: tasks with intervals,
what size and speed cost, what changed since the release that is served, confidence, and answers side by side."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.evaluation import exports, pictures
from khmer_assets.evaluation.evaluate import CALIBRATION, SCORES
from khmer_assets.evaluation.measures import Difference, Measure, differences, read
from khmer_assets.evaluation.page import Section, page
from khmer_assets.evaluation.writing import ABOUT as WRITING
from khmer_assets.foundation import plots
from khmer_assets.foundation.files import link_file
from khmer_assets.foundation.tables import markdown_table
from resources.payload import PayloadRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Others' figures to hold a model against. Both counted from the answers of all 204 test rows of Khmer in the
# repository of SIB-200 (github.com/dadelani/sib-200).
PUBLISHED = [
    ("sib200 khm_Khmr said", "GPT-4", 72.5, "SIB-200's repository, 204 rows"),
    ("sib200 khm_Khmr said", "GPT-3.5", 38.7, "SIB-200's repository, 204 rows"),
]
SYMBOLS = {"better": "▲", "worse": "▼", "alike": "≈"}
INTERVALS = "In brackets, between which bounds 95 % of 1,000 draws of the items lie. ↓: less is better."


class Spec(BaseModel):
    """Folders of the variants' evaluations, of which the first is the one that the others are compared with, of other
    models' evaluations, of the release that is served, and of export_comparison."""

    recipe: str
    evaluations: list[Path]
    compared: list[Path] = []
    release: Path | None = None
    exports: Path | None = None


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `report.html`, `report.md`, `report.json` (figures by variant), `scores/` and `calibration/` (files by
    variant) and plots."""
    own, others = (_read(folders) for folders in (spec.evaluations, spec.compared))
    evaluations = own | others
    folders = dict(zip(own, spec.evaluations, strict=True)) | dict(zip(others, spec.compared, strict=True))
    scores = {name: scores_in(folder) for name, folder in folders.items()}
    former = scores_in(spec.release) if spec.release else []
    released = json.loads((spec.release / "release.json").read_text())["variant"] if spec.release else ""
    changes = differences(former, scores.get(released, []))
    for variant in own:
        for file, kind in ((SCORES, "scores"), (CALIBRATION, "calibration")):
            if (folders[variant] / file).exists():
                (run.output / kind).mkdir(exist_ok=True)
                link_file(folders[variant] / file, run.output / kind / f"{variant}.json")
    report = {
        "recipe": spec.recipe,
        "variants": own,
        "compared": others,
        "changes": [vars(change) | {"verdict": change.verdict} for change in changes],
    }
    (run.output / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1))

    drawn = _pictures(evaluations)
    tables = {
        "variants": pl.DataFrame([_row(name, evaluation) for name, evaluation in evaluations.items()]),
        "tasks": _tasks(evaluations),
        "against_the_whole": _against(scores),
        "changes": _changes(changes),
        "published": pl.DataFrame(PUBLISHED, schema=["task", "model", "accuracy", "source"], orient="row"),
        "answers": _answers(evaluations),
        "notes": _notes(evaluations),
    }
    about = {
        "variants": ("Variants", "What each takes, and how it predicts text. Speed is what one user gets."),
        "tasks": ("Tasks", INTERVALS),
        "against_the_whole": (
            f"Against {next(iter(own))}",
            "▲ better, ▼ worse, ≈ no difference that a paired test on the same items can tell; with the change.",
        ),
        "changes": ("Since the release that is served", f"The variant {released} against it."),
        "published": ("Published figures", "Of other models on the whole benchmark, to hold a model against."),
        "answers": ("Answers side by side", "Greedy. ✗ stands before an answer that fails its checks."),
        "notes": ("How it was measured", ""),
    }
    if found := exports.shown(spec.exports, dict(zip(own, spec.evaluations, strict=True))):
        heading, told, tables["exports"] = found
        about["exports"] = heading, told
    shown = {name: table for name, table in tables.items() if table.height}
    sections = []
    for name, table in shown.items():
        sections.append(Section(*about[name], table))
        if name == "variants":
            sections += [_pictured(*picture) for picture in drawn.values()]
    title = f"Benchmark of {spec.recipe}"
    told = f"{len(own)} variants" + (f" and {len(others)} other models" if others else "") + " on the same items."
    (run.output / "report.html").write_text(page(title, told, sections), encoding="utf-8")
    figures = {}
    for name, (_, panels, draw) in drawn.items():
        with pictures.colors(pictures.LIGHT):
            figures[f"{name}_plot"] = draw(panels)
            figures[f"{name}_plot"].savefig(run.output / f"{name}.png", dpi=110)
    parts = [f"## {about[name][0]}\n\n{about[name][1]}\n\n{markdown_table(table)}" for name, table in shown.items()]
    parts += [f"![]({name}.png)" for name in drawn]
    (run.output / "report.md").write_text(f"# {title}\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    return {
        **{name: markdown_table(table) for name, table in shown.items()},
        **{name: plots.as_markdown(figure) for name, figure in figures.items()},
    }


def scores_in(folder: Path) -> list[Measure]:
    """The measures in the folder of an evaluation or a release; none where it is older than these."""
    return _measures(folder / SCORES)


def scores_of(report: Path, variant: str) -> list[Measure]:
    """A variant's measures in the folder of a report."""
    return _measures(report / "scores" / f"{variant}.json")


def _measures(file: Path) -> list[Measure]:
    return [read(kept) for kept in json.loads(file.read_text())] if file.exists() else []


def _read(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    found = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    return {evaluation.pop("variant"): evaluation for evaluation in found}


def _row(name: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    low, high = evaluation.get("tokens_per_second_spread") or (None, None)
    return {
        "variant": name,
        **{f"bits/char {language}": value for language, value in evaluation["bits_per_character"].items()},
        **{f"perplexity {language}": value for language, value in evaluation["perplexity"].items()},
        "exact answers": evaluation["answer_accuracy"],
        "MB": None if evaluation["bytes"] is None else evaluation["bytes"] / 1e6,
        "memory MB": None if evaluation["memory_mb"] is None else float(evaluation["memory_mb"]),
        "tokens/s": evaluation["tokens_per_second"],
        "spread": f"{low:,.0f} to {high:,.0f}" if low is not None else "",
    }


def _tasks(evaluations: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    rows: dict[str, dict[str, Any]] = {}
    for variant, evaluation in evaluations.items():
        for one in evaluation.get("measures", []):
            name = f"{one['task']}: {one['metric']}" + ("" if one["higher_is_better"] else " ↓")
            row = rows.setdefault(name, {"task": name, "items": one["items"]})
            row[variant] = _with_bounds(one)
    columns = ["task", "items", *evaluations]
    return pl.DataFrame([{column: row.get(column) for column in columns} for row in rows.values()])


def _with_bounds(told: Mapping[str, Any]) -> str:
    digits = 1 if abs(told["value"]) >= 10 or told["high"] - told["low"] > 5 else 3
    return f"{told['value']:.{digits}f} ({told['low']:.{digits}f} to {told['high']:.{digits}f})"


def _notes(evaluations: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """What a reader must know of how it was measured: signatures, what was too long, what writing means."""
    first = next(iter(evaluations.values()))
    rows = {(one["metric"], one["note"]): None for one in first.get("measures", []) if one["note"]}
    rows |= dict.fromkeys(WRITING.items())
    for name, evaluation in evaluations.items():
        for task, count in (evaluation.get("truncated") or {}).items():
            rows[(f"{task}, {name}", f"{count} items did not fit into the context and lost their beginning")] = None
        if tasks := evaluation.get("cannot_score"):
            rows[(f"cannot score, {name}", f"the server tells no likelihoods for {', '.join(tasks)}")] = None
        if count := evaluation.get("chats_too_long"):
            rows[(f"chats, {name}", f"{count} chats are longer than the context, and have no loss")] = None
    return pl.DataFrame(list(rows), schema=["measure", "how"], orient="row")


def _against(scores: Mapping[str, list[Measure]]) -> pl.DataFrame:
    first, *others = scores
    rows: dict[str, dict[str, Any]] = {}
    for other in others:
        for one in differences(scores[first], scores[other]):
            rows.setdefault(one.name, {"task": one.name})[other] = _verdict(one)
    return pl.DataFrame([{column: row.get(column) for column in ("task", *others)} for row in rows.values()])


def _verdict(one: Difference) -> str:
    digits = 1 if max(abs(one.low), abs(one.high)) >= 1 else 3
    return f"{SYMBOLS[one.verdict]} {one.change:+.{digits}f} ({one.low:+.{digits}f} to {one.high:+.{digits}f})"


def _changes(changes: Sequence[Difference]) -> pl.DataFrame:
    return pl.DataFrame([{"task": one.name, "items": one.items, "change": _verdict(one)} for one in changes])


def _answers(evaluations: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    rows: dict[str, dict[str, Any]] = {}
    for variant, evaluation in evaluations.items():
        for asked in evaluation["answers"]:
            mark = "✗ " if asked.get("failures") else ""
            rows.setdefault(asked["prompt"], {"prompt": asked["prompt"]})[variant] = mark + asked["answer"]
    columns = ["prompt", *evaluations]
    return pl.DataFrame([{column: row.get(column) for column in columns} for row in rows.values()])


def _pictures(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, list[str], Any]]:
    """By name: the heading, the panels, and what draws some of the panels."""
    languages = list(dict.fromkeys(lang for e in evaluations.values() for lang in e["bits_per_character"]))

    def drawn(key: str, label: str, title: str, scale: float) -> Any:
        def draw(panels: list[str]) -> "Figure":
            points: dict[str, Sequence[tuple[str, float, float]]] = {
                language: [
                    (name, evaluation[key] / scale, evaluation["bits_per_character"][language])
                    for name, evaluation in evaluations.items()
                    if evaluation.get(key) and language in evaluation["bits_per_character"]
                ]
                for language in panels
            }
            return pictures.quality_against(label, points, title)

        return title, languages, draw

    found = {
        "quality": drawn("bytes", "size of the weights (MB)", "Quality and size", 1e6),
        "speed": drawn("tokens_per_second", "tokens a second, one user", "Quality and speed", 1),
    }
    name, first = next(iter(evaluations.items()))
    calibration = first.get("calibration") or {}
    if kinds := [kind for kind in ("choices", "answers") if kind in calibration]:
        draw = partial(pictures.reliability_diagram, calibration)
        found["reliability"] = (f"Confidence of {name}", kinds, draw)
    return found


def _pictured(title: str, panels: list[str], draw: Any) -> Section:
    """A picture a panel, so that a narrow window shows them below each other."""
    themes = (pictures.LIGHT, pictures.DARK)
    found = [tuple(pictures.data_uri(partial(draw, [panel]), theme) for theme in themes) for panel in panels]
    return Section(title, pictures=[(light, dark) for light, dark in found])
