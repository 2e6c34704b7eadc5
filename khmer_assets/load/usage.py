"""The audit records as a table, a Parquet file a day, and pictures of how the server is used and how fast it answers.

A day whose records are those of the last time is taken over. Memory holds the names of one day's records and a batch.
"""

import json
import os
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq
from pydantic import BaseModel

from khmer_assets.foundation.files import link_file
from khmer_assets.foundation.plots import as_markdown, new_figure
from khmer_assets.foundation.tables import markdown_table
from resources.payload import PayloadRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 5_000  # records
REPORT = "usage.md"
TEXTS = (
    *("id", "request_id", "key_id", "user", "endpoint", "model", "release", "adapter", "outcome"),
    *("finish_reason", "error", "route", "route_reason", "dissatisfied_with"),
)
SPOKEN = ("system_prompt", "user_input", "output", "parameters")  # what is no text is kept as JSON
SECONDS = ("seconds_to_first_token", "seconds")
TOKENS = ("prompt_tokens", "completion_tokens")
SCHEMA: dict[str, Any] = {
    "time": pl.Datetime("us", "UTC"),
    **dict.fromkeys((*TEXTS, *SPOKEN), pl.String),
    **dict.fromkeys(SECONDS, pl.Float64),
    **dict.fromkeys(TOKENS, pl.Int64),
    "confidence": pl.Float64,
    "dissatisfied": pl.Boolean,
    "day": pl.Date,
}


class Spec(BaseModel):
    """The folder of the audit records, and the table as it was made the last time, if it was."""

    records: Path
    former: Path | None


def main(spec: Spec, run: PayloadRun) -> dict[str, Any]:
    """Write `<day>.parquet` for each day that has records, oldest record first, and `usage.md`.

    A file that is no record becomes a row with outcome `unreadable`. Without a day, `none.parquet` has no row.
    """
    read = 0
    for folder in sorted(spec.records.glob("????-??-??")):
        names = sorted((name for name in os.listdir(folder) if name.endswith(".json")), key=_time_in)
        former = spec.former and spec.former / f"{folder.name}.parquet"
        if former and former.exists() and _holds(former, len(names)):
            link_file(former, run.output / former.name)
            continue
        run.log(f"{folder.name}: {len(names):,} records")
        read += len(names)
        _write(run.output / f"{folder.name}.parquet", folder, names)
    if not any(run.output.iterdir()):
        _write(run.output / "none.parquet", spec.records, [])
    days = by_day(pl.scan_parquet(run.output / "*.parquet"))
    table = markdown_table(days)
    (run.output / REPORT).write_text(f"# Answers by day\n\n{table}\n")
    results: dict[str, Any] = {"records": int(days["answers"].sum()), "records_read": read, "by_day": table}
    return results | {name: as_markdown(figure) for name, figure in figures(days).items() if days.height}


def _time_in(name: str) -> str:
    return name.rpartition("_")[2]


def _holds(file: Path, records: int) -> bool:
    """Whether a day's table is the one that would be made now: records come and go, but none changes."""
    return pq.read_metadata(file).num_rows == records and pq.read_schema(file).names == list(SCHEMA)


def _write(file: Path, folder: Path, names: list[str]) -> None:
    with pq.ParquetWriter(file, _frame([]).schema, compression="zstd") as writer:
        for start in range(0, len(names), BATCH):
            writer.write_table(_frame([_row(folder / name) for name in names[start : start + BATCH]]))


def _frame(rows: list[dict[str, Any]]) -> Any:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").to_arrow(compat_level=pl.CompatLevel.oldest())


def _row(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        usage = record.get("usage") or {}
        row = {name: record.get(name) for name in (*TEXTS, *SECONDS, "confidence", "dissatisfied")}
        row |= {name: _text(record.get(name)) for name in SPOKEN}
        row |= {name: usage.get(name) for name in TOKENS}
        row["time"] = datetime.fromisoformat(record["time"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        row = {"id": file.stem, "outcome": "unreadable", "error": f"{file}: {error!r}"}
    return {name: row.get(name) for name in SCHEMA} | {"day": date.fromisoformat(file.parent.name)}


def by_day(log: pl.LazyFrame) -> pl.DataFrame:
    """A row a day: seconds to the first token and in all, answers, and tokens."""
    return (
        log.group_by("day")
        .agg(
            pl.col("seconds_to_first_token").median().alias("first token, median"),
            pl.col("seconds_to_first_token").quantile(0.95).alias("first token, 95 %"),
            pl.col("seconds").median().alias("whole, median"),
            pl.col("seconds").quantile(0.95).alias("whole, 95 %"),
            pl.len().alias("answers"),
            (pl.col("outcome") != "completed").sum().alias("not completed"),
            pl.sum("prompt_tokens", "completion_tokens"),
        )
        .sort("day")
        .collect(engine="streaming")
    )


def figures(days: pl.DataFrame) -> "dict[str, Figure]":
    """`latency`: seconds to the first token and in all. `usage`: answers and tokens. Of the rows of `by_day`."""
    names = [f"{day:%m-%d}" for day in days["day"]]
    latency, usage = new_figure(), new_figure()
    axes = latency.add_subplot()
    for name in days.columns[1:5]:
        axes.plot(names, days[name].to_list(), marker="o", label=name)
    axes.set_ylabel("seconds")
    axes.legend(fontsize=8)
    answers, tokens = usage.subplots(1, 2)
    answers.bar(names, days["answers"].to_list(), label="answers")
    answers.bar(names, days["not completed"].to_list(), label="not completed")
    answers.legend(fontsize=8)
    prompt = days["prompt_tokens"].to_list()
    tokens.bar(names, prompt, label="prompt tokens")
    tokens.bar(names, days["completion_tokens"].to_list(), bottom=prompt, label="completion tokens")
    tokens.legend(fontsize=8)
    return {"latency": latency, "usage": usage}


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
