"""Logs of the servers: one line of JSON an event, on standard error. No document and no query text."""

from __future__ import annotations

import json
import logging
import sys
import time

LOGGER = logging.getLogger("twinbert")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure() -> None:
    """Sends everything that is logged to standard error as JSON lines; called once, when a server starts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def event(name: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: object) -> None:
    """Logs an event with its fields; `error` adds its trace."""
    LOGGER.log(level, name, extra={"fields": fields}, exc_info=error)
