"""A row: what a kind of source gives for one document, or why there is none."""

from typing import Any

Row = dict[str, str | None]
"""`text` and, where known, `id`, `title`, `language`, `category`, `url`, `published_at`; `place` says where it was
found (a file and line, an address); `rule` and `reason` set it aside."""


MAX_DOCUMENT_BYTES = 50_000_000
TEXT_OF_REMOVED = 1_000  # characters kept of a document that is too large; the rest is still in the source


class SourceError(ValueError):
    """A source whose data is not there. The message names the source and the address, and says what to do."""


def failure(rule: str, place: str, reason: str, text: str = "") -> dict[str, str | None]:
    """A row for what could not be read, set aside under `rule` with the place and the reason."""
    return {"rule": rule, "place": place, "reason": f"{place}: {reason}", "text": text}


def plain(value: Any) -> str | None:
    """A field beside the text as a string: dates as ISO 8601, nothing for what is empty."""
    if value is None or value == "":
        return None
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
