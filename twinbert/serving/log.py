"""Logs of the servers: one line of JSON an event, on standard error.

An event that happens for a request carries its id. No line has the text of a query or a document, unless texts were
asked for.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

LOGGER = logging.getLogger("twinbert")

# Every RPC runs in a task of its own, which has a context of its own.
_BOUND: ContextVar[Mapping[str, object]] = ContextVar("bound", default=MappingProxyType({}))


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


def bind(**fields: object) -> None:
    """Adds fields to every event of the running task from here on."""
    _BOUND.set({**_BOUND.get(), **fields})


def event(name: str, *, level: int = logging.INFO, error: BaseException | None = None, **fields: object) -> None:
    """Logs an event with its fields; `error` adds its trace."""
    LOGGER.log(level, name, extra={"fields": {**fields, **_BOUND.get()}}, exc_info=error)
