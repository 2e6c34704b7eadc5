"""What a user at a terminal sees of a run: the lines that assets and payloads log, without Dagster's own events."""

import logging
import sys

import dagster as dg


class _OwnLines(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        meta = getattr(record, "dagster_meta", None) or {}
        own = not meta.get("dagster_event") and not str(meta.get("orig_message")).startswith("[pipes]")
        return record.levelno >= logging.INFO and own


@dg.logger(config_schema={"name": dg.Field(str, default_value="", description="What the lines are about.")})
def terminal_logger(init_context: dg.InitLoggerContext) -> logging.Logger:
    """The default logger of every job."""
    logger = logging.Logger("khmer")
    handler = logging.StreamHandler(sys.stderr)
    name = init_context.logger_config["name"]
    handler.setFormatter(_OriginalMessage(f"{name}: " if name else ""))
    handler.addFilter(_OwnLines())
    logger.addHandler(handler)
    return logger


class _OriginalMessage(logging.Formatter):
    def __init__(self, prefix: str):
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", None) or {}
        return f"        {self._prefix}{meta.get('orig_message', record.getMessage())}"
