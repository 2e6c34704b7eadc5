"""A row: what a kind of source gives for one document, or why there is none."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, str | None]
"""`text` and, where known, `id`, `title`, `language`, `category`, `url`, `published_at`; `place` says where it was
found (a file and line, an address), `encoding` with what it was decoded, where the settings say so; `rule` and
`reason` set it aside."""


MAX_DOCUMENT_BYTES = 50_000_000
TEXT_OF_REMOVED = 1_000  # characters kept of a document that is too large; the rest is still in the source


class SourceError(ValueError):
    """A source whose data is not there. The message names the source and the address, and says what to do."""


class MissingColumn(ValueError):
    """A table without the column that should hold the text. The message names the columns that there are."""


def require_text_column(columns: Sequence[str], texts: Sequence[str]) -> None:
    """Raises `MissingColumn` where a table has none of the columns `texts`; where there are none to look for, never."""
    if texts and not set(texts) & set(columns):
        raise MissingColumn(
            f"there is no column {' or '.join(map(repr, texts))}; name the one with the texts as 'text' in settings: "
            f"there are {', '.join(map(repr, columns)) or 'none':.300}"
        )


def failure(rule: str, place: str, reason: str, text: str = "") -> dict[str, str | None]:
    """A row for what could not be read, set aside under `rule` with the place and the reason."""
    return {"rule": rule, "place": place, "reason": f"{place}: {reason}", "text": text}


def plain(value: Any) -> str | None:
    """A field beside the text as a string: dates as ISO 8601, nothing for what is empty."""
    if value is None or value == "":
        return None
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
