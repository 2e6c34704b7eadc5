"""The benchmark report: every variant in one table, with plots and the answers side by side."""

import json
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.foundation import plots
from khmer_assets.foundation.tables import markdown_table
from resources.payload import PayloadRun


class Spec(BaseModel):
    """Folders of the variants' evaluations; the first is the one that the others are compared with."""

    recipe: str
    evaluations: list[Path]


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `report.md`, `report.json` (figures by variant) and two plots."""
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in spec.evaluations]
    table = pl.DataFrame([_row(evaluation) for evaluation in evaluations])
    answers = pl.DataFrame(
        [
            {"prompt": asked["prompt"]} | {e["variant"]: e["answers"][row]["answer"] for e in evaluations}
            for row, asked in enumerate(evaluations[0]["answers"])
        ]
    )
    report = {"recipe": spec.recipe, "variants": {e.pop("variant"): e for e in (dict(e) for e in evaluations)}}
    (run.output / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1))
    figures = {"quality.png": _quality_against_size(table), "answers.png": _answers_picture(answers)}
    for name, figure in figures.items():
        figure.savefig(run.output / name, dpi=110)
    body = f"## Variants\n\n{markdown_table(table)}\n\n![](quality.png)\n\n## Answers\n\n{markdown_table(answers)}\n"
    (run.output / "report.md").write_text(f"# Benchmark of {spec.recipe}\n\n{body}\n![](answers.png)\n")
    return {
        "variants": markdown_table(table),
        "answers": markdown_table(answers),
        **{name.removesuffix(".png") + "_plot": plots.as_markdown(figure) for name, figure in figures.items()},
    }


def _row(evaluation: dict[str, Any]) -> dict[str, Any]:
    return {
        "variant": evaluation["variant"],
        **{f"bits/char {language}": value for language, value in evaluation["bits_per_character"].items()},
        **{f"perplexity {language}": value for language, value in evaluation["perplexity"].items()},
        "exact answers": evaluation["answer_accuracy"],
        "MB": evaluation["bytes"] / 1e6,
        "memory MB": evaluation["memory_mb"],
        "tokens/s": evaluation["tokens_per_second"],
    }


def _quality_against_size(table: pl.DataFrame) -> Any:
    figure = plots.new_figure()
    axes = figure.subplots()
    for column in (name for name in table.columns if name.startswith("bits/char")):
        axes.scatter(table["MB"], table[column], label=column)
        for name, size, bits in table.select("variant", "MB", column).iter_rows():
            axes.annotate(name, (size, bits), textcoords="offset points", xytext=(4, 4), fontsize=8)
    axes.set(xlabel="size of the weights (MB)", ylabel="bits a character", title="Quality and size")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _answers_picture(answers: pl.DataFrame) -> Any:
    first = answers.columns[1]
    figure = plots.new_figure(9, 0.5 + 0.55 * answers.height)
    axes = figure.subplots()
    axes.set_axis_off()
    for row, (prompt, answer) in enumerate(answers.select("prompt", first).iter_rows()):
        axes.text(0, answers.height - row, prompt[:60], fontsize=10, weight="bold")
        axes.text(0, answers.height - row - 0.45, f"→ {answer[:90]}", fontsize=10)
    axes.set(xlim=(0, 1), ylim=(0, answers.height + 0.6), title=f"Answers of {first}")
    return figure
