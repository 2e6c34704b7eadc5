"""The audit records as one table, and pictures of how the server is used and how fast it answers."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from khmer_assets.foundation.plots import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXTS = ("id", "key_id", "endpoint", "model", "release", "adapter", "outcome", "finish_reason", "error")
SPOKEN = ("system_prompt", "user_input", "output", "parameters")  # what is no text is kept as JSON
SECONDS = ("seconds_to_first_token", "seconds")
TOKENS = ("prompt_tokens", "completion_tokens")
SCHEMA: dict[str, Any] = {
    "time": pl.Datetime("us", "UTC"),
    **dict.fromkeys((*TEXTS, *SPOKEN), pl.String),
    **dict.fromkeys(SECONDS, pl.Float64),
    **dict.fromkeys(TOKENS, pl.Int64),
}


def read_records(folder: Path) -> pl.LazyFrame:
    """A row a record, oldest first, and its `day`. A file that is no record becomes a row with outcome `unreadable`."""
    frame = pl.DataFrame(list(_rows(folder)), schema=SCHEMA, orient="row")
    return frame.with_columns(day=pl.col("time").dt.date()).sort("time", "id").lazy()


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("????-??-??/*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            usage = record.get("usage") or {}
            row = {name: record.get(name) for name in (*TEXTS, *SECONDS)}
            row |= {name: _text(record.get(name)) for name in SPOKEN}
            row |= {name: usage.get(name) for name in TOKENS}
            row["time"] = datetime.fromisoformat(record["time"])
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            row = {"id": file.stem, "outcome": "unreadable", "error": f"{file}: {error!r}"}
        yield {name: row.get(name) for name in SCHEMA}


def figures(log: pl.DataFrame) -> "dict[str, Figure]":
    """`latency`: seconds to the first token and in all, by day. `usage`: answers and tokens by day."""
    days = (
        log.filter(pl.col("day").is_not_null())
        .group_by("day")
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
    )
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
