"""JSON Lines and TSV: one line is one row."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from io import BufferedIOBase
from typing import NoReturn

from encoder_server.documents.document import (
    DELETED_COLUMN,
    MAX_DOCUMENT_BYTES,
    Columns,
    Row,
    Table,
    UnreadableRow,
    not_utf8,
)
from twinbert.errors import UsageError

BOM = b"\xef\xbb\xbf"
_SKIPPED_AT_ONCE = 1 << 20
_TSV_DELETED = {"": None, "true": True, "false": False}


def read_jsonl(stream: BufferedIOBase, columns: Columns) -> Table:
    """JSON Lines: an object a line. Which type the ids have shows only in the rows."""
    return Table(None, _jsonl_rows(stream, columns))


def _jsonl_rows(stream: BufferedIOBase, columns: Columns) -> Iterator[Row | UnreadableRow]:
    decode = json.JSONDecoder(parse_constant=_refuse_constant).decode
    for line in _lines(stream):
        if isinstance(line, UnreadableRow):
            yield line
            continue
        number, content = line
        try:
            fields = decode(content)
        except json.JSONDecodeError as error:
            yield UnreadableRow(number, f"not JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:  # NaN, a number of over 4,300 digits, endless nesting
            yield UnreadableRow(number, f"not JSON that can be read: {error}")
        else:
            if isinstance(fields, dict):
                get = fields.get
                texts = [get(column) for column in columns.text]
                yield Row(number, get(columns.id), texts, get(columns.time), get(DELETED_COLUMN))
            else:
                yield UnreadableRow(number, f"not a JSON object: {reprlib.repr(fields)}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def read_tsv(stream: BufferedIOBase, columns: Columns, name: str, id_type: str) -> Table:
    """Tab-separated values under a header: no quoting and no escapes, so no field holds a tab or a newline.

    Raises:
        UsageError: The header lacks a column that it must have.
    """
    lines = _lines(stream)
    line = next(lines, None)
    if line is None:  # a part that its writer left empty
        return Table(None, iter(()))
    if isinstance(line, UnreadableRow):
        raise UsageError(f"{name}:{line.number}: the header cannot be read: {line.reason}")
    header = line[1].split("\t")
    columns.require(header, name)
    return Table(id_type, _tsv_rows(lines, header, columns, id_type))


def _tsv_rows(
    lines: Iterator[tuple[int, str] | UnreadableRow], header: list[str], columns: Columns, id_type: str
) -> Iterator[Row | UnreadableRow]:
    key_at = header.index(columns.id)
    texts_at = [header.index(column) for column in columns.text]
    time_at, deleted_at = (header.index(c) if c in header else None for c in (columns.time, DELETED_COLUMN))
    for line in lines:
        if isinstance(line, UnreadableRow):
            yield line
            continue
        number, content = line
        fields = content.split("\t")
        if len(fields) != len(header):
            yield UnreadableRow(number, f"{len(fields)} tab-separated fields, the header has {len(header)}")
            continue
        yield Row(
            number,
            _integer(fields[key_at]) if id_type == "integer" else fields[key_at],
            [fields[at] for at in texts_at],
            None if time_at is None else fields[time_at] or None,
            None if deleted_at is None else _TSV_DELETED.get(fields[deleted_at], fields[deleted_at]),
        )


def _integer(field: str) -> int | str:
    # 20 digits hold 2^64 - 1. What is no integer stays a string, and is rejected as one.
    return int(field) if field.isascii() and field.isdigit() and len(field) <= 20 else field


def _lines(stream: BufferedIOBase) -> Iterator[tuple[int, str] | UnreadableRow]:
    """Lines that are not empty with their numbers from 1, without their ends (LF or CRLF) and a byte order mark."""
    number = 0
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        if len(line) > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(_SKIPPED_AT_ONCE)) and not rest.endswith(b"\n"):
                pass
            yield UnreadableRow(number, f"the line has over {MAX_DOCUMENT_BYTES:,} bytes")
            continue
        if number == 1:
            line = line.removeprefix(BOM)
        if not (line := line.removesuffix(b"\n").removesuffix(b"\r")):
            continue
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            yield not_utf8(number, error)
