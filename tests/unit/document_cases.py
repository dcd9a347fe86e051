"""Documents as files of every format, and all that is read of one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pyarrow as pa
import pyarrow.parquet as pq

from encoder_server.documents import Deletion, Document, DocumentSource, Rejection

GOOD = b'{"id": "a", "text": "one"}\n'
GZIPPED = gzip.compress(GOOD, mtime=0)  # no time of day: it is in the names of tests, which every process must agree on
RawDocument = tuple[str | int, str, int | None]  # id, text, Unix seconds


class Settings(TypedDict, total=False):
    """Settings of a DocumentSource beside its path."""

    format: str
    id_column: str
    text_columns: Sequence[str]
    time_column: str
    id_type: str
    delta: bool


def read(path: Path | str, **settings_: Unpack[Settings]) -> list[Document | Deletion | Rejection]:
    """All that comes from this path."""
    return list(DocumentSource(path=path, **settings_))


def read_bytes(
    folder: Path, content: bytes, name: str = "docs.jsonl", **settings_: Unpack[Settings]
) -> list[Document | Deletion | Rejection]:
    """All that comes from a file of this content."""
    path = folder / name
    path.write_bytes(content)
    return read(path, **settings_)


def read_table(
    folder: Path, columns: dict[str, Any], **settings_: Unpack[Settings]
) -> list[Document | Deletion | Rejection]:
    """All that comes from a Parquet file of these columns."""
    pq.write_table(pa.table(columns), folder / "docs.parquet")
    return read(folder / "docs.parquet", **settings_)


def the_rejection(items: Iterable[Document | Deletion | Rejection]) -> Rejection:
    """The only rejection among them."""
    [rejection] = [item for item in items if isinstance(item, Rejection)]
    return rejection


def jsonl_bytes(rows: list[RawDocument], ensure_ascii: bool) -> bytes:
    """As JSON Lines."""
    lines = (json.dumps({"id": k, "text": t, "time": s}, ensure_ascii=ensure_ascii) for k, t, s in rows)
    return "".join(line + "\n" for line in lines).encode()
