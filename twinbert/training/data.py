"""What is learned from: graded pairs in splits by query, and unlabelled texts."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from twinbert.errors import UsageError
from twinbert.text import folded, is_blank
from twinbert.training.rows import require, rows
from twinbert.training.texts import TextFile
from twinbert.training.texts import spans as spans_of

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

    def texts(self) -> list[tuple[str, str]]:
        """The pairs as (query, document)."""
        return [(pair.query, pair.document) for pair in self.pairs]

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
    """Unlabelled queries; those of dev and test, however written, are not learned from."""
    documents: Sequence[str] = field(default=())
    """Unlabelled documents."""

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for split in (self.train, self.dev, self.test):
            if not split.pairs:
                raise UsageError(f"the {split.name} split is empty; give more data, or a file of its own")
            for query in split.by_query():
                if (other := owners.setdefault(query_key(query), split.name)) != split.name:
                    raise UsageError(
                        f"the query {query!r} is in the {other} and the {split.name} split, so the measure would be "
                        "of what was learned by heart; split by query, in whatever case and spacing it is written"
                    )

    def training_queries(self, unlabelled: int | None = None) -> list[str]:
        """Queries to learn from, each once: of the train split, then at most so many unlabelled ones, or all."""
        judged = (pair.query for pair in self.train.pairs)
        return list(dict.fromkeys(chain(judged, islice(self._more_queries(), unlabelled))))

    def corpus(self, unlabelled: int | None = None) -> list[str]:
        """Documents, each once: all judged ones, as a catalogue is known before its queries, then unlabelled ones."""
        judged = (pair.document for split in (self.train, self.dev, self.test) for pair in split.pairs)
        return list(dict.fromkeys(chain(judged, islice(self.documents, unlabelled))))

    def graded_texts(self) -> Iterator[str]:
        """Every text that people have judged, of all splits; one may come again."""
        return (
            text
            for split in (self.train, self.dev, self.test)
            for pair in split.pairs
            for text in (pair.query, pair.document)
        )

    def texts(self, *, spans: int = 0, seed: int = 0) -> Iterator[str]:
        """Every text to learn from, as a stream, in which an unlabelled one may come again.

        Args:
            spans: then so many of each document, see `twinbert.training.texts.spans`.
            seed: of these.
        """
        yield from self.training_queries(0)
        yield from self._more_queries()
        yield from self.corpus(0)
        yield from self.documents
        if spans:
            yield from spans_of(chain(self.corpus(0), self.documents), spans, seed=seed)

    def stand_ins(self, documents: Sequence[str], count: int, *, seed: int) -> Iterator[str]:
        """At most `count` runs of words, of as many random documents: queries to learn from that nobody asked."""
        drawn = np.random.default_rng(seed).permutation(len(documents))[:count]
        return self._learnable(spans_of((documents[number] for number in drawn.tolist()), 1, seed=seed))

    def _more_queries(self) -> Iterator[str]:
        return self._learnable(self.queries)

    def _learnable(self, queries: Iterable[str]) -> Iterator[str]:
        held_out = {query_key(pair.query) for split in (self.dev, self.test) for pair in split.pairs}
        return (query for query in queries if query_key(query) not in held_out)


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


def query_key(query: str) -> str:
    """What a query is known by, so that one written in other case, spacing or Unicode form counts as the same."""
    return " ".join(folded(query).split())


def split_of(query: str) -> Literal["train", "dev", "test"]:
    """The split of a query: 8 of 10 train, 1 dev, 1 test, by its sha256, so that it is the same everywhere."""
    digit = int(hashlib.sha256(query.encode()).hexdigest()[:8], 16) % 10
    return "test" if digit == 9 else "dev" if digit == 8 else "train"


def read_dataset(
    train: Path,
    *,
    dev: Path | None = None,
    test: Path | None = None,
    columns: Columns | None = None,
) -> Dataset:
    """Graded pairs from TSV (with a header), JSON Lines or Parquet, the first two plain or gzip.

    Args:
        train: the pairs; without `dev` and `test` they are split by `split_by_query`.
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
    dataset: Dataset,
    *,
    columns: Columns,
    queries: Path | None,
    documents: Path | None,
    folder: Path | None = None,
    writes: bool = True,
) -> Dataset:
    """The dataset with unlabelled texts.

    Args:
        dataset: what is added to.
        columns: names of the columns that the texts are in.
        queries: a file of queries, as `read_texts` reads it.
        documents: a file of documents, likewise.
        folder: where they are kept, in any number; None: in memory.
        writes: false: another process fills the folder, and has by now.

    Raises:
        UsageError: a file cannot be read, lacks the column, or has a blank text.
    """

    def kept(path: Path, column: str, name: str) -> Sequence[str]:
        if folder is None:
            return list(read_texts(path, column))
        return TextFile.write(folder / name, read_texts(path, column)) if writes else TextFile(folder / name)

    if queries is not None:
        dataset = dataclasses.replace(dataset, queries=kept(queries, columns.query, "queries"))
    if documents is not None:
        dataset = dataclasses.replace(dataset, documents=kept(documents, columns.document, "documents"))
    return dataset


def split_by_query(pairs: Iterable[Pair], *, verbatim: bool = False) -> Dataset:
    """Pairs split by `split_of`.

    Args:
        pairs: in any order.
        verbatim: by the letters of a query, and not by its `query_key`.

    Raises:
        UsageError: a split is empty.
    """
    splits: dict[str, list[Pair]] = {"train": [], "dev": [], "test": []}
    for pair in pairs:
        splits[split_of(pair.query if verbatim else query_key(pair.query))].append(pair)
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
            table = csv.DictReader(io.TextIOWrapper(file, "latin-1", newline=""))
            require(path, table.fieldnames or (), _HOME_DEPOT)
            numbered = ((number, row) for number, row in enumerate(table, start=2))
            pairs = [_pair(path, number, row, scale) for number, row in numbered]
            return split_by_query(pairs, verbatim=True)  # as others who measure on this data split it
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; give the path of the competition's train.csv.zip") from None
    # What zipfile and csv make of damage, of a password and of a method of compression that they have not.
    except (OSError, KeyError, EOFError, RuntimeError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path}: is not the competition's train.csv.zip ({error})") from error


def read_pairs(path: Path, columns: Columns) -> Iterator[Pair]:
    """The pairs of a file, as a stream.

    Raises:
        UsageError: see `read_dataset`.
    """
    names = (columns.query, columns.document, columns.grade)
    return (_pair(path, number, row, columns) for number, row in rows(path, names))


def read_texts(path: Path, column: str) -> Iterator[str]:
    """The texts in a column of a file, as a stream.

    Raises:
        UsageError: the file cannot be read, lacks the column, or has a blank text.
    """
    return (_text(path, number, row, column) for number, row in rows(path, (column,)))


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
    if not isinstance(text, str) or is_blank(text):
        raise UsageError(f'{path}:{number}: "{column}" is {text!r}, not a text; mend or remove the row')
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can name half of a pair of surrogates
        raise UsageError(
            f'{path}:{number}: "{column}" is {text!r}, which has half a character; mend or remove the row'
        ) from None
    return text
