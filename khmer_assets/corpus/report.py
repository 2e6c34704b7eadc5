"""The corpus report: what each source gave, what each rule removed, which copies were found, and what the texts are
like."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel

from khmer_assets.corpus.normalized import changes_by_rule
from khmer_assets.foundation import plots
from khmer_assets.foundation.tables import markdown_table
from khmer_assets.khmer.script import KHMER_LETTERS, LATIN_LETTERS
from resources.payload import PayloadRun
from resources.storage import DATA, REMOVED

EXAMPLES = 10  # of each rule
SAMPLES = 3  # of each source
ROWS_AT_ONCE = 5_000
SHOWN_ROWS = 60  # of a table on the page; report.json holds all
STAGES = ("raw", "normalized", "filtered", "deduplicated")

Folders = dict[str, Path]  # by source


class Spec(BaseModel):
    """The folders of each stage's artifacts by source, of the dedup_index and of the tokenizer."""

    raw: Folders
    normalized: Folders
    filtered: Folders
    deduplicated: Folders
    dedup_index: Path
    tokenizer: Path
    seed: int


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `report.md`, `report.json`, `examples.md` (ten removed rows of each rule) and the plots."""
    stages: dict[str, Folders] = {stage: getattr(spec, stage) for stage in STAGES}
    run.log("measuring the documents")
    documents = pl.concat(_measured(folder / DATA, spec.tokenizer) for folder in spec.deduplicated.values())
    removed = pl.concat(_removed(stage, folder, spec.seed) for stage in STAGES for folder in stages[stage].values())
    index = pl.scan_parquet(spec.dedup_index / DATA)
    tables = {
        "Sources": _by_source(stages, documents),
        "Over time": _over_time(documents),
        "Removed": removed.group_by("stage", "rule", "source")
        .agg(pl.col("rows").first())
        .sort("stage", "rule", "source"),
        "Normalization": changes_by_rule(
            pl.concat(pl.scan_parquet(folder / DATA).select("changes") for folder in spec.normalized.values())
        ),
        "Copies between sources": _copies(index),
        "Clusters": _clusters(index),
    }
    samples = _samples(spec.deduplicated.values(), spec.seed)
    figures = {
        "stages": _stages_picture(tables["Sources"]),
        "time": _time_picture(tables["Over time"]),
        "rules": _rules_picture(tables["Removed"]),
        "lengths": _lengths_picture(documents),
        "scripts": _scripts_picture(documents),
    }
    for name, figure in figures.items():
        figure.savefig(run.output / f"{name}.png", dpi=110)
    examples = _examples_page(removed)
    (run.output / "examples.md").write_text(examples)
    (run.output / "report.json").write_text(
        json.dumps({name: table.to_dicts() for name, table in tables.items()}, ensure_ascii=False, indent=1)
    )
    page = "".join(f"## {name}\n\n{markdown_table(table.head(SHOWN_ROWS))}\n\n" for name, table in tables.items())
    page += f"## Samples\n\n{markdown_table(samples)}\n\n"
    (run.output / "report.md").write_text(f"# Corpus\n\n{page}" + "".join(f"![]({name}.png)\n" for name in figures))
    totals = documents.select(pl.len().alias("documents"), pl.col("characters", "tokens").sum()).row(0, named=True)
    return {
        **totals,
        **{name.lower().replace(" ", "_"): markdown_table(table.head(SHOWN_ROWS)) for name, table in tables.items()},
        "removed_examples": examples,
        "samples": markdown_table(samples),
        **{f"{name}_plot": plots.as_markdown(figure) for name, figure in figures.items()},
    }


def _measured(file: Path, tokenizer: Path) -> pl.DataFrame:
    """A row for each document: source, month (or null), characters, tokens, khmer and latin (shares of the letters)."""
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).encode_batch_fast
    text = pl.col("text")
    columns = {
        "source": pl.col("source"),
        "month": pl.col("published_at").str.slice(0, 7),
        "characters": text.str.len_chars(),
        "khmer": text.str.count_matches(KHMER_LETTERS) / text.str.count_matches(r"[\p{L}\p{M}]"),
        "latin": text.str.count_matches(LATIN_LETTERS) / text.str.count_matches(r"[\p{L}\p{M}]"),
    }
    empty = pl.scan_parquet(file).head(0).select(**columns, tokens=pl.lit(0, pl.Int64)).collect()
    batches = pl.scan_parquet(file).select("source", "published_at", "text").collect_batches(chunk_size=ROWS_AT_ONCE)
    return pl.concat(
        [
            empty,
            *(
                batch.select(
                    **columns,
                    tokens=pl.Series(
                        [len(found.ids) for found in encode(batch["text"].to_list(), add_special_tokens=False)],
                        dtype=pl.Int64,
                    ),
                )
                for batch in batches
            ),
        ]
    )


def _removed(stage: str, folder: Path, seed: int) -> pl.DataFrame:
    """Random examples of each rule in a stage of one source, with how many rows the rule removed there."""
    removed = pl.scan_parquet(folder / REMOVED)
    chosen = (
        removed.select("rule", order=pl.col("id").hash(seed))
        .with_row_index("row")
        .with_columns(rows=pl.len().over("rule"), stage=pl.lit(stage))
        .sort("order")
        .group_by("rule", maintain_order=True)
        .head(EXAMPLES)
        .collect()
    )
    return chosen.join(_rows_of(removed, chosen["row"]), on="row", how="left", maintain_order="left").select(
        "stage", "source", "rule", "rows", "order", "id", "measure", "reason", "text"
    )


def _rows_of(frame: pl.LazyFrame, rows: pl.Series) -> pl.DataFrame:
    """A few rows by their numbers, without `rule`: the texts of all others are not kept in memory."""
    numbered = frame.drop("rule", strict=False).with_row_index("row")
    return numbered.filter(pl.col("row").is_in(rows.implode())).collect(engine="streaming")


def _examples_page(removed: pl.DataFrame) -> str:
    parts = []
    for (stage, rule), rows in removed.sort("stage", "rule", "order").group_by("stage", "rule", maintain_order=True):
        table = rows.head(EXAMPLES).select("id", "measure", "reason", "text")
        parts.append(f"### {stage}: {rule}\n\n{markdown_table(table)}\n\n")
    return "".join(parts) or "No row was removed.\n"


def _by_source(stages: dict[str, Folders], documents: pl.DataFrame) -> pl.DataFrame:
    """Documents at each stage, and characters and tokens of what is left at the end."""
    rows = [
        {"source": source}
        | {stage: pl.scan_parquet(stages[stage][source] / DATA).select(pl.len()).collect().item() for stage in STAGES}
        for source in stages["raw"]
        if all(source in stages[stage] for stage in STAGES)
    ]
    left = documents.group_by("source").agg(pl.col("characters", "tokens").sum())
    return pl.DataFrame(rows, schema={"source": pl.String, **dict.fromkeys(STAGES, pl.Int64)}).join(
        left, on="source", how="left", maintain_order="left"
    )


def _over_time(documents: pl.DataFrame) -> pl.DataFrame:
    return (
        documents.drop_nulls("month")
        .group_by("month", "source")
        .agg(pl.len().alias("documents"), pl.col("characters", "tokens").sum())
        .sort("month", "source")
    )


def _copies(index: pl.LazyFrame) -> pl.DataFrame:
    """How many documents of a source were removed for a copy in which source, by rule."""
    kept = index.select(kept_id="id", kept_in="source")
    return (
        index.drop_nulls("duplicate_rule")
        .join(kept, on="kept_id")
        .group_by("source", "kept_in", "duplicate_rule")
        .len("documents")
        .sort("documents", "source", "kept_in", descending=[True, False, False])
        .collect(engine="streaming")
    )


def _clusters(index: pl.LazyFrame) -> pl.DataFrame:
    """How many groups of copies there are of each size."""
    sizes = index.group_by("cluster").agg(size=pl.len(), sources=pl.col("source").n_unique()).filter(pl.col("size") > 1)
    by_size = sizes.group_by("size").agg(clusters=pl.len(), between_sources=(pl.col("sources") > 1).sum())
    return by_size.sort("size").collect(engine="streaming")


def _samples(folders: Iterable[Path], seed: int) -> pl.DataFrame:
    parts = []
    for folder in folders:
        documents = pl.scan_parquet(folder / DATA)
        ordered = documents.select(pl.col("id").hash(seed)).with_row_index("row").sort("id").head(SAMPLES).collect()
        texts = _rows_of(documents.select("source", "id", "text"), ordered["row"])
        parts.append(ordered.select("row").join(texts, on="row", how="left", maintain_order="left").drop("row"))
    return pl.concat(parts)


def _stages_picture(table: pl.DataFrame) -> Any:
    figure = plots.new_figure(height=1.2 + 0.5 * table.height)
    axes = figure.subplots()
    for number, stage in enumerate(STAGES):
        places = [row + number * 0.2 for row in range(table.height)]
        axes.barh(places, table[stage].to_list(), height=0.2, label=stage)
    axes.set_yticks([row + 0.3 for row in range(table.height)], table["source"].to_list())
    axes.invert_yaxis()
    axes.set(xscale="symlog", xlabel="documents", title="What each stage leaves")
    axes.legend()
    return figure


def _time_picture(table: pl.DataFrame) -> Any:
    figure = plots.new_figure()
    axes = figure.subplots()
    months = table["month"].unique().sort().to_list()
    bottom = dict.fromkeys(months, 0)
    for source in table["source"].unique(maintain_order=True):
        own = dict(table.filter(source=source).select("month", "documents").iter_rows())
        axes.bar(months, [own.get(m, 0) for m in months], bottom=list(bottom.values()), label=source)
        bottom = {month: bottom[month] + own.get(month, 0) for month in months}
    axes.set(ylabel="documents", title="Documents by the month they were published in")
    axes.tick_params(axis="x", rotation=90)
    if months:
        axes.legend()
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no document says when it was published", ha="center", transform=axes.transAxes)
    return figure


def _rules_picture(removed: pl.DataFrame) -> Any:
    by_rule = removed.group_by("rule").agg(pl.col("rows").sum()).sort("rows")
    figure = plots.new_figure(height=1.2 + 0.3 * by_rule.height)
    axes = figure.subplots()
    axes.bar_label(axes.barh(by_rule["rule"].to_list(), by_rule["rows"].to_list()))
    axes.set(xlabel="rows", title="Removed by rule")
    return figure


def _lengths_picture(documents: pl.DataFrame) -> Any:
    figure = plots.new_figure()
    axes = figure.subplots()
    for (source,), rows in documents.group_by("source", maintain_order=True):
        bins = [10 ** (place / 5) for place in range(36)]
        axes.hist(rows["characters"].to_numpy(), bins=bins, histtype="step", label=str(source))
    axes.set(xscale="log", yscale="symlog", xlabel="characters of a document", ylabel="documents", title="Lengths")
    axes.legend()
    return figure


def _scripts_picture(documents: pl.DataFrame) -> Any:
    figure = plots.new_figure()
    axes = figure.subplots()
    for script, label in (("khmer", "ខ្មែរ"), ("latin", "Latin")):
        shares = documents[script].fill_nan(0).drop_nulls().to_numpy()
        axes.hist(shares, bins=[step / 20 for step in range(21)], histtype="step", label=label)
    axes.set(xlabel="share of a document's letters", ylabel="documents", title="Scripts", yscale="symlog")
    axes.legend()
    return figure
