"""What scorers record and refreshes read: JSON Lines in FILE, and before it in FILE.1, which together are bounded.

    requests  {"time_ms", "query", "ids", "crossing"}              to try a new generation on before it is published
    misses    {"time_ms", "id", "reason", "generation", "query"?}  candidates that were not there

Of several workers each writes files of its own, FILE.worker-0 and so on; whoever reads FILE reads them all. Times are
milliseconds since the Unix epoch. Files written by hand need no times, and requests no ids and no crossing.
"""

from __future__ import annotations

import glob
import heapq
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeGuard

from twinbert.errors import UsageError
from twinbert.text import is_blank

# Reasons of misses: not in the generation and not known to have been; deleted from it by a delta.
MissReason = Literal["never_seen", "deleted"]
DELETED: MissReason = "deleted"

_WORKER = re.compile(r"\.worker-(\d+)(\.1)?$")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Request:
    """A query and its candidates, all strings or all integers; none: whoever replays it chooses some.

    `crossing` is the name of the crossing layer that scored them; empty: the bundle's default.
    """

    query: str
    ids: Sequence[str] | Sequence[int]
    crossing: str


def of_worker(path: Path, number: int) -> Path:
    """The file that one of several workers records to, where they are told to record to this one."""
    return path.with_name(f"{path.name}.worker-{number}")


def older(path: Path) -> Path:
    """The file that a recorded file becomes when it is full."""
    return path.with_name(f"{path.name}.1")


def read_requests(path: Path, id_type: str, count: int) -> list[Request]:
    """The latest requests of a recording with ids of this type, up to `count`, the latest first. What is no request is
    left out: the last line may be half written.

    Raises:
        UsageError: there is no such file, or it cannot be read.
    """
    requests = (request for line in _lines(path) if (request := _request(line, id_type)) is not None)
    return list(islice(requests, count))


def read_missed(path: Path, id_type: str) -> set[str | int]:
    """The ids of this type in a recording of misses, but for those that were deleted when they were last recorded.

    Raises:
        UsageError: as `read_requests`.
    """
    latest: dict[str | int, object] = {}
    for line in _lines(path):
        if _is_id(line.get("id"), id_type):
            latest.setdefault(line["id"], line.get("reason"))
    return {id_ for id_, reason in latest.items() if reason != DELETED}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """What the lines hold, the latest first, whoever wrote them."""
    beside = [_WORKER.search(one.name) for one in path.parent.glob(f"{glob.escape(path.name)}.worker-*")]
    workers = sorted({int(match[1]) for match in beside if match})
    written = [_texts(one) for one in (path, *(of_worker(path, number) for number in workers))]
    if not any(written):
        raise UsageError(f"{path}: does not exist; a scorer that is told to record there makes it")
    return heapq.merge(*map(_parsed, written), key=_time_ms, reverse=True)


def _texts(path: Path) -> list[str]:
    """What a recorder has written, the latest file first."""
    try:
        return [one.read_text("utf-8", errors="replace") for one in (path, older(path)) if one.exists()]
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _time_ms(fields: dict[str, Any]) -> float:
    """When it was recorded; what was written by hand need not say."""
    time_ms = fields.get("time_ms")
    return time_ms if isinstance(time_ms, int | float) else math.inf


def _parsed(texts: list[str]) -> Iterator[dict[str, Any]]:
    """What the lines hold, the last first."""
    for text in texts:
        for line in reversed(text.split("\n")):
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(fields, dict):
                yield fields


def _request(fields: dict[str, Any], id_type: str) -> Request | None:
    query, ids, crossing = fields.get("query"), fields.get("ids", []), fields.get("crossing", "")
    if not _is_text(query) or is_blank(query) or not isinstance(ids, list) or not isinstance(crossing, str):
        return None
    return Request(query, ids, crossing) if all(_is_id(id_, id_type) for id_ in ids) else None


def _is_id(value: object, id_type: str) -> bool:
    if id_type == "integer":
        return type(value) is int and 0 <= value < 1 << 64
    return _is_text(value) and value != ""


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string of characters: JSON can also name lone surrogates, which no store or tokenizer takes."""
    return isinstance(value, str) and not _SURROGATE.search(value)
