"""Tables for metadata and reports."""

import polars as pl

MAX_CELL = 100  # characters


def markdown_table(frame: pl.DataFrame) -> str:
    """A frame as a Markdown table; long texts are cut and can neither break the table nor inject markup."""

    def cell(value: object) -> str:
        text = f"{value:,.4g}" if isinstance(value, float) else "" if value is None else str(value)
        text = text if len(text) <= MAX_CELL else text[:MAX_CELL] + "…"
        text = " ".join(text.split())
        return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")

    head = "| " + " | ".join(frame.columns) + " |"
    rule = "|" + " --- |" * frame.width
    return "\n".join([head, rule, *("| " + " | ".join(map(cell, row)) + " |" for row in frame.iter_rows())])
