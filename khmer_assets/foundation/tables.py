"""Tables for metadata and reports."""

import polars as pl

MAX_CELL = 100  # characters


# Dagster's page shows HTML in Markdown too, and fetches an image wherever it lies: `![](https://...)` in a crawled text
# would be a request from the reader's browser.
MARKUP = str.maketrans({character: f"&#{ord(character)};" for character in "&<|`[]\\"})


def markdown_table(frame: pl.DataFrame) -> str:
    """A frame as a Markdown table; long texts are cut, and no text can break the table or make an image or a link."""

    def cell(value: object) -> str:
        text = f"{value:,.4g}" if isinstance(value, float) else "" if value is None else str(value)
        text = text if len(text) <= MAX_CELL else text[:MAX_CELL] + "…"
        return " ".join(text.split()).translate(MARKUP)

    head = "| " + " | ".join(map(cell, frame.columns)) + " |"
    rule = "|" + " --- |" * frame.width
    return "\n".join([head, rule, *("| " + " | ".join(map(cell, row)) + " |" for row in frame.iter_rows())])
