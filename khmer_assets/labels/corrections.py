"""What persons say of documents: lines of JSON, which count more than any teacher.

A line is an object with any of the labels (`khmer_assets/labels/categories.py`) and either the `id` of a document that
was labelled before, and its `source`, or a `text` of its own. `labels.html` of the label model shows documents to
correct, and `review.jsonl` beside it has them in this form.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from jsonschema import Draft202012Validator

from khmer_assets.labels.categories import LABELLED, LABELS, PERSON, Categories, answer_schema, quality
from khmer_assets.sources.documents import SET_ASIDE, content_hash

MAX_LINE = 1_000_000  # characters
OWN_TEXTS = "corrections"  # the source of texts that a correction brings

CORRECTION = pl.Schema({**LABELLED, **SET_ASIDE})


def read_corrections(file: Path, categories: Categories) -> pl.DataFrame:
    """`LABELLED` with rule, measure and reason, a row a line; `text` is null where the correction names a document.

    Of several lines about one document the last counts. Raises `OSError` where the file cannot be read.
    """
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise OSError(f"{file} is a folder, a pipe or a device, expected a file")
    rows = pl.DataFrame(list(_rows(file, categories)), schema=CORRECTION)
    document = [pl.col("source"), pl.col("id")]
    earlier = pl.col("rule").is_null() & ~pl.col("id").is_last_distinct().over("source", pl.col("rule").is_null())
    rows = rows.with_columns(
        rule=pl.when(earlier).then(pl.lit("corrected_again")).otherwise("rule"),
        reason=pl.when(earlier).then(pl.format("a later line is about {} {} too", *document)).otherwise("reason"),
    )
    return rows.with_columns(quality=quality())


def _rows(file: Path, categories: Categories) -> Iterator[dict[str, Any]]:
    schema = answer_schema(categories)
    judge = Draft202012Validator({**schema, "required": [], "minProperties": 1})
    with file.open(encoding="utf-8", errors="replace") as lines:
        number = 0
        while line := lines.readline(MAX_LINE + 1):
            number += 1
            whole = len(line) <= MAX_LINE or line.endswith("\n")
            while not line.endswith("\n") and (rest := lines.readline(MAX_LINE)):
                line = line[:1] + rest[-1:]
            if line.strip().strip("\ufeff"):
                try:
                    if not whole:
                        raise ValueError(f"the line has more than {MAX_LINE:,} characters")
                    yield _row(line.strip().strip("\ufeff"), judge)
                except (ValueError, RecursionError) as error:
                    reason = f"line {number}: {error}"[:300]
                    yield {"id": f"line {number}", "rule": "no_correction", "reason": reason}


def _row(line: str, judge: Draft202012Validator) -> dict[str, Any]:
    value = json.loads(line)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")
    text, identity, source = (value.get(name) for name in ("text", "id", "source"))
    if text is None and (identity is None or source is None):
        raise ValueError("expected `id` and `source` of a labelled document, or a `text`")
    for name in ("text", "id", "source"):
        if not isinstance(value.get(name, ""), str):
            raise ValueError(f"{name} is no string")
    said = {name: value[name] for name in LABELS if value.get(name) is not None}
    if not said:
        raise ValueError(f"says nothing: give one of {', '.join(LABELS)}")
    fault = next(iter(judge.iter_errors(said)), None)
    if fault is not None:
        raise ValueError(f"{'.'.join(map(str, fault.absolute_path))}: {fault.message:.200}")
    if text is not None:
        text.encode()  # half a character raises
        own = content_hash(text)
        return {"id": identity or own[:16], "source": source or OWN_TEXTS, "text": text, "content_hash": own,
                "teacher": PERSON, **said}  # fmt: skip
    return {"id": identity, "source": source, "teacher": PERSON, **said}


def with_corrections(labelled: pl.DataFrame, corrections: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Labelled rows, with what persons said in the place of what teachers said, and those with a text of their own
    behind them; and how many corrections are of documents that nobody has labelled."""
    known = labelled.select("content_hash", _source="source", _id="id").unique("content_hash", keep="first")
    corrections = corrections.join(known, on="content_hash", how="left", maintain_order="left").with_columns(
        source=pl.coalesce("_source", "source"), id=pl.coalesce("_id", "id")
    )
    corrections = corrections.select(*LABELLED).unique(["source", "id"], keep="last", maintain_order=True)
    said = corrections.select("source", "id", _person=pl.lit(True), **{f"_{name}": pl.col(name) for name in LABELS})
    rows = labelled.join(said, on=["source", "id"], how="left", maintain_order="left").with_columns(
        *(pl.coalesce(f"_{name}", name).alias(name) for name in LABELS),
        teacher=pl.when("_person").then(pl.lit(PERSON)).otherwise("teacher"),
    )
    rest = corrections.join(labelled, on=["source", "id"], how="anti", maintain_order="left")
    own = rest.drop_nulls("text")
    whole = pl.concat([rows.select(*LABELLED), own]).with_columns(quality=quality())
    return whole, rest.height - own.height
