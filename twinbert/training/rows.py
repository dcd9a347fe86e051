"""Rows of TSV (under a header, no quoting), JSON Lines and Parquet, the first two plain or gzip, as a stream."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, cast

from twinbert.errors import UsageError

Format = Literal["tsv", "jsonl", "parquet"]
_FORMATS: Mapping[str, Format] = {
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
_PARQUET_ROWS = 4096


def rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """The rows of a file as a stream: line or row number from 1, and values by name, of at least `columns`.

    Raises:
        UsageError: the file is missing, of no known format, damaged or not UTF-8, or lacks a column.
    """
    format_ = _FORMATS.get(Path(path.name.lower().removesuffix(".gz")).suffix)
    if format_ is None:
        raise UsageError(f"{path}: its name tells no format; call it .tsv, .jsonl or .parquet, the first two also .gz")
    try:
        if format_ == "parquet":
            yield from _parquet_rows(path, columns)
            return
        with _opened(path) as file:
            yield from (_tsv_rows if format_ == "tsv" else _jsonl_rows)(path, file, columns)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read to its end ({error})") from error


def _opened(path: Path) -> IO[bytes]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    return cast("IO[bytes]", opener(path, "rb"))


def _tsv_rows(path: Path, file: IO[bytes], columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Tab-separated under a header, without quoting or escapes."""
    header: list[str] | None = None
    for number, line in _lines(path, file):
        fields = line.split("\t")
        if header is None:
            header = fields
            require(path, header, columns)
            continue
        if len(fields) != len(header):
            raise UsageError(
                f"{path}:{number}: has {len(fields)} fields, the header {len(header)}; mend or remove the row"
            )
        yield number, dict(zip(header, fields, strict=True))


def _jsonl_rows(path: Path, file: IO[bytes], columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    for number, line in _lines(path, file):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}:{number}: is not JSON ({error}); mend or remove the line") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}:{number}: is no JSON object; mend or remove the line")
        require(path, row, columns)
        yield number, row


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            require(path, file.schema_arrow.names, columns)
            for batch in file.iter_batches(_PARQUET_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pa.ArrowException as error:
        raise UsageError(f"{path}: is no Parquet file, or a damaged one ({error})") from error


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}:{number}: is not UTF-8 ({error.reason}); save the file as UTF-8") from None
        if text:
            yield number, text


def require(path: Path, present: Iterable[str], columns: Sequence[str]) -> None:
    """Raises UsageError unless all `columns` are among the names that are present in the file."""
    names = list(present)
    for column in columns:
        if column not in names:
            raise UsageError(
                f'{path}: there is no column "{column}" among {", ".join(names)}; '
                "name yours with --query-column, --document-column and --grade-column"
            )
