"""What is learned from: graded pairs in splits by query, and unlabelled texts."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import io
import json
import math
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Literal, cast, overload

import numpy as np
import numpy.typing as npt

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
_HOME_DEPOT = ("search_term", "product_title", "relevance")


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and a document that people have judged; `grade` from 0, irrelevant, to 1."""

    query: str
    document: str
    grade: float


@dataclass(frozen=True)
class Split:
    """Pairs whose queries are in no other split."""

    name: str
    pairs: list[Pair]

    def by_query(self) -> dict[str, list[Pair]]:
        """The pairs of each query, queries in the order in which they come."""
        grouped: dict[str, list[Pair]] = {}
        for pair in self.pairs:
            grouped.setdefault(pair.query, []).append(pair)
        return grouped


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Three splits, and texts without labels.

    Raises:
        UsageError: a split is empty, or a query is in two.
    """

    train: Split
    dev: Split
    test: Split
    queries: Sequence[str] = field(default=())
    """Unlabelled queries; those of dev and test do not belong here."""
    documents: Sequence[str] = field(default=())
    """Unlabelled documents."""

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for split in (self.train, self.dev, self.test):
            if not split.pairs:
                raise UsageError(f"the {split.name} split is empty; give more data, or a file of its own")
            for query in split.by_query():
                if (other := owners.setdefault(query, split.name)) != split.name:
                    raise UsageError(
                        f"the query {query!r} is in the {other} and the {split.name} split, so the measure would be "
                        "of what was learned by heart; split by query"
                    )

    def training_queries(self, unlabelled: int | None = None) -> list[str]:
        """Queries to learn from, each once: of the train split, then at most so many unlabelled ones, or all."""
        judged = (pair.query for pair in self.train.pairs)
        return list(dict.fromkeys(chain(judged, islice(self._more_queries(), unlabelled))))

    def corpus(self, unlabelled: int | None = None) -> list[str]:
        """Documents, each once: all judged ones, as a catalogue is known before its queries, then unlabelled ones."""
        judged = (pair.document for split in (self.train, self.dev, self.test) for pair in split.pairs)
        return list(dict.fromkeys(chain(judged, islice(self.documents, unlabelled))))

    def texts(self) -> Iterator[str]:
        """Every text to learn from, as a stream, in which an unlabelled one may come again."""
        yield from self.training_queries(0)
        yield from self._more_queries()
        yield from self.corpus(0)
        yield from self.documents

    def _more_queries(self) -> Iterator[str]:
        held_out = {pair.query for split in (self.dev, self.test) for pair in split.pairs}
        return (query for query in self.queries if query not in held_out)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns, or fields of a JSON object, make a pair, and the scale of its grades.

    Raises:
        UsageError: the scale is empty.
    """

    query: str = "query"
    document: str = "document"
    grade: str = "grade"
    lowest: float = 0.0
    """The grade of an irrelevant document."""
    highest: float = 1.0
    """The grade of a perfect one."""

    def __post_init__(self) -> None:
        if not self.lowest < self.highest:
            raise UsageError(f"grades: the scale is from {self.lowest} to {self.highest}; give the lower end first")


def split_of(query: str) -> Literal["train", "dev", "test"]:
    """The split of a query: 8 of 10 train, 1 dev, 1 test, by its sha256, so that it is the same everywhere."""
    digit = int(hashlib.sha256(query.encode()).hexdigest()[:8], 16) % 10
    return "test" if digit == 9 else "dev" if digit == 8 else "train"


def read_dataset(
    train: Path, *, dev: Path | None = None, test: Path | None = None, columns: Columns | None = None
) -> Dataset:
    """Graded pairs from TSV (with a header), JSON Lines or Parquet, the first two plain or gzip.

    Args:
        train: the pairs; without `dev` and `test` they are split by `split_of`.
        dev: pairs to calibrate and choose on.
        test: pairs to measure on.
        columns: their names and the scale of grades.

    Raises:
        UsageError: a file cannot be read, lacks a column, or has a row that is no pair; a split is empty; a query is in
            two; only one of `dev` and `test` is given.
    """
    columns = columns or Columns()
    if (dev is None) != (test is None):
        raise UsageError("give both --dev and --test, or neither: then the pairs are split by query")
    if dev is None or test is None:
        return split_by_query(read_pairs(train, columns))
    return Dataset(
        train=Split("train", list(read_pairs(train, columns))),
        dev=Split("dev", list(read_pairs(dev, columns))),
        test=Split("test", list(read_pairs(test, columns))),
    )


def add_unlabelled(
    dataset: Dataset, *, columns: Columns, queries: Path | None, documents: Path | None, folder: Path | None = None
) -> Dataset:
    """The dataset with unlabelled texts.

    Args:
        dataset: what is added to.
        columns: names of the columns that the texts are in.
        queries: a file of queries, as `read_texts` reads it.
        documents: a file of documents, likewise.
        folder: where they are kept, in any number; None: in memory.

    Raises:
        UsageError: a file cannot be read, lacks the column, or has a blank text.
    """

    def kept(path: Path, column: str, name: str) -> Sequence[str]:
        texts = read_texts(path, column)
        return list(texts) if folder is None else TextFile.write(folder / name, texts)

    if queries is not None:
        dataset = dataclasses.replace(dataset, queries=kept(queries, columns.query, "queries"))
    if documents is not None:
        dataset = dataclasses.replace(dataset, documents=kept(documents, columns.document, "documents"))
    return dataset


def split_by_query(pairs: Iterable[Pair]) -> Dataset:
    """Pairs split by `split_of`.

    Raises:
        UsageError: a split is empty.
    """
    splits: dict[str, list[Pair]] = {"train": [], "dev": [], "test": []}
    for pair in pairs:
        splits[split_of(pair.query)].append(pair)
    return Dataset(
        train=Split("train", splits["train"]),
        dev=Split("dev", splits["dev"]),
        test=Split("test", splits["test"]),
    )


def sample(dataset: Dataset, share: float) -> Dataset:
    """The dataset with a share of its training queries, the same ones everywhere; dev and test stay whole.

    Raises:
        UsageError: no query is left.
    """
    kept = [pair for pair in dataset.train.pairs if _position(pair.query) < share]
    return dataclasses.replace(dataset, train=Split("train", kept))


def _position(query: str) -> float:
    """From 0 to 1, of other digits than `split_of` looks at."""
    return int(hashlib.sha256(query.encode()).hexdigest()[8:16], 16) / 2**32


def read_home_depot(path: Path) -> Dataset:
    """The Home Depot product search data: `train.csv` in a zip, relevance 1 to 3, graded (relevance − 1) / 2.

    Raises:
        UsageError: the file is missing or another one, or a row is no pair.
    """
    scale = Columns(query=_HOME_DEPOT[0], document=_HOME_DEPOT[1], grade=_HOME_DEPOT[2], lowest=1, highest=3)
    try:
        with zipfile.ZipFile(path) as archive, archive.open("train.csv") as file:
            rows = csv.DictReader(io.TextIOWrapper(file, "latin-1", newline=""))
            _require(path, rows.fieldnames or (), _HOME_DEPOT)
            numbered = ((number, row) for number, row in enumerate(rows, start=2))
            return split_by_query([_pair(path, number, row, scale) for number, row in numbered])
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; give the path of the competition's train.csv.zip") from None
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: is not the competition's train.csv.zip ({error})") from error


def read_pairs(path: Path, columns: Columns) -> Iterator[Pair]:
    """The pairs of a file, as a stream.

    Raises:
        UsageError: see `read_dataset`.
    """
    names = (columns.query, columns.document, columns.grade)
    return (_pair(path, number, row, columns) for number, row in _rows(path, names))


def read_texts(path: Path, column: str) -> Iterator[str]:
    """The texts in a column of a file, as a stream.

    Raises:
        UsageError: the file cannot be read, lacks the column, or has a blank text.
    """
    return (_text(path, number, row, column) for number, row in _rows(path, (column,)))


class TextFile(Sequence[str]):
    """Texts on disk, in any number: read by position through a memory map, 8 bytes of memory a text.

    Args:
        path: of the texts, that `write` made.
    """

    def __init__(self, path: Path) -> None:
        self._ends = np.load(_ends_path(path), mmap_mode="r")
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)

    @classmethod
    def write(cls, path: Path, texts: Iterable[str]) -> TextFile:
        """Writes a stream of texts; what is there is replaced, and stays whole for those who have it open."""
        path.parent.mkdir(parents=True, exist_ok=True)
        ends, end = array("q"), 0
        building = path.with_name(f".{path.name}.building")
        with building.open("wb") as file:
            for text in texts:
                content = text.encode()
                end += len(content)
                file.write(content)
                ends.append(end)
        building_ends = path.with_name(f".{path.name}.ends.npy")
        np.save(building_ends, np.array(ends, dtype=np.int64))
        building.rename(path)
        building_ends.rename(_ends_path(path))
        return cls(path)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each text: about as its tokens are many."""
        sizes: npt.NDArray[np.int64] = np.diff(self._ends, prepend=0)
        return sizes

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return bytes(self._bytes[start : int(self._ends[index])]).decode()


def _ends_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.ends.npy")


def _pair(path: Path, number: int, row: Mapping[str, object], columns: Columns) -> Pair:
    value = row[columns.grade]
    try:
        grade = float(value)  # type: ignore[arg-type]  # what is no number is caught here
    except (TypeError, ValueError):
        raise UsageError(f"{path}:{number}: the grade {value!r} is no number; mend or remove the row") from None
    # A comparison with NaN is false.
    if not columns.lowest <= grade <= columns.highest or math.isinf(grade):
        raise UsageError(
            f"{path}:{number}: the grade {value} is outside {columns.lowest:g} to {columns.highest:g}; "
            "give the scale with --lowest-grade and --highest-grade, or mend the row"
        )
    return Pair(
        query=_text(path, number, row, columns.query),
        document=_text(path, number, row, columns.document),
        grade=(grade - columns.lowest) / (columns.highest - columns.lowest),
    )


def _text(path: Path, number: int, row: Mapping[str, object], column: str) -> str:
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise UsageError(f'{path}:{number}: "{column}" is {text!r}, not a text; mend or remove the row')
    return text


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Line or row numbers from 1, and the values of at least `columns`."""
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
    except (OSError, EOFError) as error:
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
            _require(path, header, columns)
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
        _require(path, row, columns)
        yield number, row


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, object]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _require(path, file.schema_arrow.names, columns)
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


def _require(path: Path, present: Iterable[str], columns: Sequence[str]) -> None:
    names = list(present)
    for column in columns:
        if column not in names:
            raise UsageError(
                f'{path}: there is no column "{column}" among {", ".join(names)}; '
                "name yours with --query-column, --document-column and --grade-column"
            )
