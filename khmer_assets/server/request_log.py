"""The gateway's log: a JSON object a line, `requests.jsonl`.

Only this program's own lines, which hold neither prompts nor keys: what was asked and answered is in the audit records
(`audit_log.py`).
"""

import json
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

log = logging.getLogger("khmer.gateway")


class JsonLines(logging.Formatter):
    """A JSON object a line: time, level and what the message says."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; an exception's traceback is a field of it."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return f"{json.dumps(line)[:-1]}, {record.getMessage()[1:]}"


def write_log(folder: Path) -> None:
    """Write the lines of this process to `<folder>/requests.jsonl`."""
    handler = RotatingFileHandler(folder / "requests.jsonl", maxBytes=10_000_000, backupCount=5)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
