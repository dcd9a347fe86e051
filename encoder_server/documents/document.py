"""A document as the refresh takes it, and the checks that make one of a row of the input."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from textwrap import shorten
from typing import NamedTuple

from twinbert.errors import UsageError
from twinbert.text import is_blank

# The wire contract's limit, and the store's: a test holds them together, because the store's module imports numpy.
MAX_ID_BYTES = 511
# Bounds the memory that one document can take: of a line, and of a text in UTF-8.
MAX_DOCUMENT_BYTES = 16 << 20

DELETED_COLUMN = "deleted"
DEFAULT_TIME_COLUMN = "time"

ID_TYPES = {str: "string", int: "integer"}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_UNIX_SECONDS = re.compile(r"-?\d+(\.\d+)?", re.ASCII)
# The years 1 to 9999, as in RFC 3339. Milliseconds taken for seconds fall outside.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


@dataclass(frozen=True, slots=True)
class Document:
    """A document to encode.

    Attributes:
        key: Its id: 1 to 511 bytes of UTF-8, or 0 to 2^64 - 1.
        text: What the document tower reads: not blank, and free of lone surrogates.
        time_ms: When the source last changed it, in milliseconds since the Unix epoch; None: now.
    """

    key: str | int
    text: str
    time_ms: int | None


@dataclass(frozen=True, slots=True)
class Deletion:
    """A document that a delta deletes; `key` is its id, as a document's."""

    key: str | int


@dataclass(frozen=True, slots=True)
class Rejection:
    """A document that was left out.

    Attributes:
        where: The file as it was named and the line, or for Parquet the row, from 1: `docs.jsonl:12`, `<stdin>:12`.
        position: Its place among all documents of the input, from 0.
        document_id: Its id as a string; empty where there is no valid one.
        reason: Why, in words.
    """

    where: str
    position: int
    document_id: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without what follows its first colon, which is about this one document, and may quote it."""
        return self.reason.partition(": ")[0]


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns, or fields of a JSON object, make a document. Several texts are joined by a newline."""

    id: str
    text: tuple[str, ...]
    time: str

    def require(self, present: Sequence[str], name: str) -> None:
        """Raise UsageError unless the table called `name` has, once each, the columns that it must have."""
        wanted = {"--id-column": [self.id], "--text-column": self.text}
        if self.time != DEFAULT_TIME_COLUMN:
            wanted["--time-column"] = [self.time]
        for option, columns in wanted.items():
            for column in columns:
                if column not in present:
                    known = shorten(", ".join(present), 500, placeholder=" …")
                    raise UsageError(f'{name}: there is no column "{column}" among {known}: choose with {option}')
        for column in (self.id, *self.text, self.time, DELETED_COLUMN):
            if present.count(column) > 1:
                raise UsageError(f'{name}: more than one column is called "{column}": rename all but one')


class Row(NamedTuple):
    """A row of the input, its values not yet checked; `number` is its line or row, from 1."""

    number: int
    key: object
    texts: Sequence[object]
    time: object
    deleted: object


class UnreadableRow(NamedTuple):
    """A row that has no values, and why."""

    number: int
    reason: str


def not_utf8(number: int, error: UnicodeDecodeError) -> UnreadableRow:
    """A row that is not UTF-8."""
    return UnreadableRow(number, f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}")


class Table(NamedTuple):
    """A file whose head was read and found good: the id type, where the head tells it, and the rows."""

    id_type: str | None
    rows: Iterator[Row | UnreadableRow]


class InvalidValueError(Exception):
    """A value that makes its row no document; the message is the reason of the rejection."""


def document_key(row: Row, columns: Columns, id_type: str | None) -> str | int:
    """The row's id, which must be of type `id_type` unless that is None."""
    key = row.key
    if key is None:
        raise InvalidValueError(f'no id, "{columns.id}" is missing or null')
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise InvalidValueError(f"the id is neither a string nor an integer: {reprlib.repr(key)}")
    if id_type not in (None, ID_TYPES[type(key)]):
        raise InvalidValueError(f"the id is of type {ID_TYPES[type(key)]}, not {id_type}: {reprlib.repr(key)}")
    if isinstance(key, int):
        if not 0 <= key < 1 << 64:
            raise InvalidValueError(f"the id is outside 0 to 2^64 - 1: {reprlib.repr(key)}")
    elif not key:
        raise InvalidValueError("the id is empty")
    elif (size := _utf8_size(key, "id")) > MAX_ID_BYTES:
        raise InvalidValueError(f"the id has {size:,} bytes, at most {MAX_ID_BYTES} are allowed: {reprlib.repr(key)}")
    return key


def document_text(row: Row, columns: Columns) -> str:
    """The row's texts, those that are not blank, joined by a newline."""
    texts: list[str] = []
    for column, text in zip(columns.text, row.texts, strict=True):
        if isinstance(text, str):
            texts.append(text)
        elif text is not None:
            raise InvalidValueError(f'the text "{column}" is not a string: {reprlib.repr(text)}')
    if not texts:
        raise InvalidValueError(f"no text, {_listed(columns.text)} missing or null")
    joined = "\n".join(text for text in texts if not is_blank(text))
    if not joined:
        raise InvalidValueError("the text is blank")
    if (size := _utf8_size(joined, "text")) > MAX_DOCUMENT_BYTES:
        raise InvalidValueError(f"the text has {size:,} bytes, at most {MAX_DOCUMENT_BYTES:,} are allowed")
    return joined


def document_time_ms(row: Row) -> int | None:
    """The row's time, RFC 3339 or Unix seconds, in milliseconds since the Unix epoch; None where it has none."""
    time = row.time
    if time is None:
        return None
    if isinstance(time, str) and _RFC_3339.fullmatch(time):
        try:
            return (datetime.fromisoformat(time.upper()) - _EPOCH) // timedelta(milliseconds=1)
        except ValueError as error:
            raise InvalidValueError(f"the time does not exist: {reprlib.repr(time)}, {error}") from None
    if isinstance(time, str) and _UNIX_SECONDS.fullmatch(time):
        time = float(time)
    if not isinstance(time, int | float) or isinstance(time, bool):
        raise InvalidValueError(
            f"the time is neither RFC 3339 (2026-05-31T12:00:00Z) nor Unix seconds: {reprlib.repr(time)}"
        )
    if not _FIRST_SECOND <= time <= _LAST_SECOND:
        raise InvalidValueError(f"the time is outside the years 1 to 9999 in Unix seconds: {reprlib.repr(time)}")
    return round(time * 1000)


def is_deletion(row: Row, *, delta: bool) -> bool:
    """Whether the row deletes its document, which it can only in a delta."""
    if row.deleted is not None and not isinstance(row.deleted, bool):
        raise InvalidValueError(f'"deleted" is neither true nor false: {reprlib.repr(row.deleted)}')
    if row.deleted and not delta:
        raise InvalidValueError(
            '"deleted" is true, and a deletion needs a delta refresh; a full one just leaves it out'
        )
    return bool(row.deleted)


def _utf8_size(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidValueError(f"the {what} has a lone surrogate: {text[error.start]!r} at {error.start}") from None


def _listed(columns: Sequence[str]) -> str:
    return " and ".join(f'"{column}"' for column in columns) + (" is" if len(columns) == 1 else " are")
