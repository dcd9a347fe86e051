"""The input of a refresh: finds its files, tells their formats, and reads one after the other."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from encoder_server.documents.document import (
    DEFAULT_TIME_COLUMN,
    ID_TYPES,
    Columns,
    Deletion,
    Document,
    InvalidValueError,
    Rejection,
    Row,
    Table,
    UnreadableRow,
    document_key,
    document_text,
    document_time_ms,
    is_deletion,
)
from encoder_server.documents.lines import BOM, read_jsonl, read_tsv
from twinbert.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FORMATS = ("jsonl", "tsv", "parquet")
_FORMAT_BY_SUFFIX = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".tsv": "tsv", ".parquet": "parquet"}
_GZIP_MAGIC = b"\x1f\x8b"
_BUFFER_BYTES = 128 << 10
_NAMES_SHOWN = 10


class DocumentSource:
    """The documents of a refresh, in the order of the input: each a Document, or a Rejection that says why it is none;
    in a delta also a Deletion, where `deleted` is true.

    The heads of all files are read on construction, so that a wrong column is found before anything is encoded.

    Args:
        path: A JSON Lines, TSV or Parquet file, the first two plain or gzip; a folder of such files, read in the order
            of their names but for those that begin with "." or "_"; or "-" for standard input (no Parquet).
        format: "jsonl", "tsv", "parquet", or "auto": told by a file's name, else by its first bytes.
        id_column: The column, or field of a JSON object, that holds the id.
        text_columns: Those that hold the text: joined by a newline, blank ones left out.
        time_column: The one that holds the time, RFC 3339 or Unix seconds. If it is the default, it may be absent.
        id_type: "string", "integer", or "auto": in Parquet that of the column, in TSV string, in JSON Lines that of the
            first good document. No id is converted, except that TSV writes integers as text.
        delta: Whether the input is what changed, which may be nothing.

    Raises:
        UsageError: A setting, the input as a whole or the head of a file is wrong. While iterating: a file is damaged,
            or there is no document at all and that is no delta.
    """

    def __init__(
        self,
        *,
        path: Path | str,
        format: str = "auto",  # noqa: A002  the word that users know
        id_column: str = "id",
        text_columns: Sequence[str] = ("text",),
        time_column: str = DEFAULT_TIME_COLUMN,
        id_type: str = "auto",
        delta: bool = False,
    ) -> None:
        _require_known("format", format, ("auto", *FORMATS))
        _require_known("id type", id_type, ("auto", *ID_TYPES.values()))
        if not text_columns:
            raise UsageError("no text column is named: name at least one with --text-column")
        self._name = str(path)
        self._format, self._delta = format, delta
        self._columns = Columns(id_column, tuple(text_columns), time_column)
        self._tsv_id_type = "integer" if id_type == "integer" else "string"
        self._id_type = None if id_type == "auto" else id_type
        self._inputs = _inputs(self._name, format)
        for source in self._inputs:
            if source.size is not None:
                with self._rows(source):
                    pass
        self._bytes_before = self._bytes_here = 0

    @property
    def total_bytes(self) -> int | None:
        """Size of the input in bytes, as it is stored; None for a stream."""
        total = 0
        for source in self._inputs:
            if source.size is None:
                return None
            total += source.size
        return total

    @property
    def bytes_read(self) -> int:
        """How many of `total_bytes` were read: of gzip compressed ones, of Parquet the share of its rows."""
        return self._bytes_before + self._bytes_here

    @property
    def id_type(self) -> str | None:
        """Type of the ids, "string" or "integer"; None until it is known."""
        return self._id_type

    def __iter__(self) -> Iterator[Document | Deletion | Rejection]:
        position = 0
        self._bytes_before = self._bytes_here = 0
        for source in self._inputs:
            with self._rows(source) as rows:
                for row in rows:
                    yield self._judged(row, source.name, position)
                    position += 1
            self._bytes_before += self._bytes_here
            self._bytes_here = 0
        if not position and not self._delta:
            raise UsageError(f"{self._name}: there is no document in it")

    def _judged(self, row: Row | UnreadableRow, name: str, position: int) -> Document | Deletion | Rejection:
        if isinstance(row, UnreadableRow):
            return Rejection(f"{name}:{row.number}", position, "", row.reason)
        document_id = ""
        try:
            key = document_key(row, self._columns, self._id_type)
            document_id = str(key)
            document: Document | Deletion
            if is_deletion(row, delta=self._delta):
                document = Deletion(key)
            else:
                document = Document(key, document_text(row, self._columns), document_time_ms(row))
        except InvalidValueError as error:
            return Rejection(f"{name}:{row.number}", position, document_id, str(error))
        if self._id_type is None:
            self._id_type = ID_TYPES[type(key)]
        return document

    @contextmanager
    def _rows(self, source: _Input) -> Iterator[Iterator[Row | UnreadableRow]]:
        """The rows of one input, once its head is found good."""
        try:
            with source.open() as file:
                table = self._table(source, file)
                self._settle_id_type(source.name, table.id_type)
                yield table.rows
        except (OSError, EOFError, zlib.error) as error:  # the latter two, and a kind of the first, from gzip
            raise UsageError(
                f"{source.name}: cannot be read to its end, so nothing was published: repair it and refresh again"
                f" ({error})"
            ) from error

    def _table(self, source: _Input, file: io.BufferedReader) -> Table:
        plain: io.BufferedReader = io.BufferedReader(_Progress(file, self._note_bytes), _BUFFER_BYTES)
        stream = plain
        if plain.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
            stream = io.BufferedReader(gzip.GzipFile(fileobj=plain, mode="rb"), _BUFFER_BYTES)
        head = stream.peek(1)
        if not head and self._delta:
            return Table(None, iter(()))
        format_ = self._format
        if format_ == "auto":
            format_ = _format_by_name(source.name) or _format_by_head(source.name, head)
        if format_ == "jsonl":
            return read_jsonl(stream, self._columns)
        if format_ == "tsv":
            return read_tsv(stream, self._columns, source.name, self._tsv_id_type)
        if source.size is None:
            raise UsageError(f"{source.name}: Parquet cannot be read from a stream: save it as a file")
        from encoder_server.documents.parquet import read_parquet  # pyarrow is slow to import

        file.seek(0)
        self._bytes_here = 0
        size = source.size
        return read_parquet(file, self._columns, source.name, lambda share: self._note_bytes(round(share * size)))

    def _settle_id_type(self, name: str, id_type: str | None) -> None:
        self._id_type = self._id_type or id_type
        if id_type not in (None, self._id_type):
            raise UsageError(
                f'{name}: the ids in column "{self._columns.id}" are of type {id_type}, those asked for or in the files'
                f" before it of type {self._id_type}: convert one of them"
            )

    def _note_bytes(self, position: int) -> None:
        self._bytes_here = position


class _Input(NamedTuple):
    """A file, or standard input where `path` is None; `size` in bytes, None for what can be read only once."""

    name: str
    path: Path | None
    size: int | None

    def open(self) -> AbstractContextManager[io.BufferedReader]:
        return self.path.open("rb") if self.path else nullcontext(cast("io.BufferedReader", sys.stdin.buffer))


class _Progress(io.RawIOBase):
    """Passes a file through, and tells after each read how many bytes it has given."""

    def __init__(self, file: io.BufferedReader, note_bytes: Callable[[int], None]) -> None:
        self._file = file
        self._note_bytes = note_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        # Fills the buffer even from a pipe, so that peeking at it sees enough to tell the format.
        read = self._file.readinto(buffer)
        self._position += read
        self._note_bytes(self._position)
        return read


def _inputs(name: str, format_: str) -> list[_Input]:
    """The input itself, or the files of the folder that it names."""
    if name == "-":
        return [_Input("<stdin>", None, None)]
    path = Path(name)
    if not path.exists():
        raise UsageError(f"{name}: no such file or folder of documents")
    if not path.is_dir():
        return [_Input(name, path, path.stat().st_size if path.is_file() else None)]
    files = sorted(file for file in path.iterdir() if not file.name.startswith((".", "_")))
    if not files:
        raise UsageError(f"{name}: there is no file in this folder")
    unknown = [
        file.name for file in files if not file.is_file() or (format_ == "auto" and not _format_by_name(file.name))
    ]
    if unknown:
        shown = ", ".join(unknown[:_NAMES_SHOWN]) + (", …" if len(unknown) > _NAMES_SHOWN else "")
        raise UsageError(
            f"{name}: not all in this folder are files called {', '.join(_FORMAT_BY_SUFFIX)}, perhaps with .gz:"
            f" move away {shown}"
        )
    return [_Input(str(file), file, file.stat().st_size) for file in files]


def _format_by_name(name: str) -> str | None:
    return _FORMAT_BY_SUFFIX.get(Path(name.lower().removesuffix(".gz")).suffix)


def _format_by_head(name: str, head: bytes) -> str:
    head = head.removeprefix(BOM)
    if not head:
        raise UsageError(f"{name}: it is empty")
    if head.lstrip().startswith(b"{"):
        return "jsonl"
    if head.startswith(b"PAR1"):
        return "parquet"
    if b"\t" in head.partition(b"\n")[0]:
        return "tsv"
    raise UsageError(f"{name}: neither its name nor its first line tells the format: give it with --format")


def _require_known(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f'the {what} "{value}" is unknown: give one of {", ".join(known)}')
