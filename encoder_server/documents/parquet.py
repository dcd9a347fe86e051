"""Parquet: read in batches, and only the columns that make a document. Imported when there is such a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BufferedIOBase

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from encoder_server.documents.document import DELETED_COLUMN, Columns, Row, Table, UnreadableRow, not_utf8
from twinbert.errors import UsageError

# Batches are small because they become Python objects; column chunks are read through a buffer, since one row group
# may be the whole file.
_BATCH_ROWS = 4096
_BUFFER_BYTES = 1 << 20
_UNITS_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def read_parquet(file: BufferedIOBase, columns: Columns, name: str, note_share: Callable[[float], None]) -> Table:
    """Open a Parquet file, called `name`; `note_share` is told, batch by batch, the share of its rows that were read.

    Ids are strings or integers, texts strings, times strings, Unix seconds, timestamps (UTC without a zone) or dates,
    and `deleted` is boolean; dictionaries of these will do.

    Raises:
        UsageError: Not Parquet, damaged (perhaps found only while the rows are read), or a column is missing or of
            another type.
    """
    try:
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
        schema = parquet.schema_arrow
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last one from names of columns
        raise _damaged(name, error) from error
    columns.require(schema.names, name)
    allowed = dict.fromkeys(columns.text, (_is_text, "strings")) | {
        columns.time: (_is_time, "strings, Unix seconds, timestamps or dates"),
        DELETED_COLUMN: (types.is_boolean, "booleans"),
        columns.id: (_is_key, "strings or integers"),
    }
    for column in schema:
        is_allowed, wanted = allowed.get(column.name, (None, ""))
        if is_allowed and not (types.is_null(column.type) or is_allowed(_value_type(column.type))):
            raise UsageError(f'{name}: column "{column.name}" is of type {column.type}: convert it to {wanted}')
    key_type = _value_type(schema.field(columns.id).type)
    id_type = None if types.is_null(key_type) else "integer" if types.is_integer(key_type) else "string"
    return Table(id_type, _rows(parquet, columns, name, note_share))


def _rows(
    parquet: pq.ParquetFile, columns: Columns, name: str, note_share: Callable[[float], None]
) -> Iterator[Row | UnreadableRow]:
    chosen = {columns.id, *columns.text, columns.time, DELETED_COLUMN}.intersection(parquet.schema_arrow.names)
    # The encoder has the cores: threads here would take them from it.
    batches = parquet.iter_batches(_BATCH_ROWS, columns=sorted(chosen), use_threads=False)
    done = 0
    while (batch := _next_batch(batches, name)) is not None:
        try:
            cells = {column: _cells(batch.column(column)) for column in chosen}
        except pa.ArrowException as error:  # of a dictionary that lacks what is asked of it
            raise _damaged(name, error) from error
        absent = [None] * len(batch)
        rows = zip(
            cells[columns.id],
            cells.get(columns.time, absent),
            cells.get(DELETED_COLUMN, absent),
            *(cells[column] for column in columns.text),
            strict=True,
        )
        for number, (key, time, deleted, *texts) in enumerate(rows, start=done + 1):
            try:
                yield Row(number, _decoded(key), [_decoded(text) for text in texts], _decoded(time), deleted)
            except UnicodeDecodeError as error:
                yield not_utf8(number, error)
        done += len(batch)
        note_share(done / max(1, parquet.metadata.num_rows))


def _next_batch(batches: Iterator[pa.RecordBatch], name: str) -> pa.RecordBatch | None:
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> UsageError:
    return UsageError(
        f"{name}: no Parquet file, or a damaged one, so nothing was published: repair it and refresh again ({error})"
    )


def _cells(column: pa.Array) -> list[object]:
    """A column as Python objects: strings as UTF-8 still to be checked, timestamps as Unix seconds."""
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if types.is_timestamp(column.type):
        column = pc.divide(column.cast(pa.int64()).cast(pa.float64(), safe=False), _UNITS_PER_SECOND[column.type.unit])
    elif _is_text(column.type):
        column = column.cast(pa.large_binary())
    cells: list[object] = column.to_pylist()
    return cells


def _decoded(cell: object) -> object:
    return cell.decode() if isinstance(cell, bytes) else cell


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(types.is_integer(kind))


def _is_time(kind: pa.DataType) -> bool:
    return _is_key(kind) or bool(types.is_floating(kind) or types.is_timestamp(kind) or types.is_date(kind))
