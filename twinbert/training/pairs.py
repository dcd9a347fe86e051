"""What the teacher is asked: pairs to distil from, and a cache of its answers.

A training query meets the documents that people judged for it, its BM25 neighbours, which are hard to tell apart from
relevant ones, and random documents, which are most of a catalogue.

Shapes: P pairs.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO, Self

import accelerate
import numpy as np
import numpy.typing as npt

from twinbert.errors import UsageError
from twinbert.training.data import Dataset
from twinbert.training.devices import gathered, new_accelerator
from twinbert.training.report import Report

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_RETRIEVED_AT_ONCE = 256  # queries
_LAST = 0xFFFFFFFF  # what complements the crc32 of an append's last record
_SCORED_AT_ONCE = 4096  # pairs between two appends to the cache: what a kill loses


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Which documents a training query meets besides its judged ones.

    Raises:
        UsageError: a number is negative.
    """

    bm25: int = 8
    """Best documents of the corpus by BM25; judged ones among them are pairs already."""
    random: int = 2
    """Random documents of the corpus."""
    spans: int = 0
    """Stand-ins for queries, runs of words of so many random documents. Of new queries a student learns most: it comes
    nearer to its teacher on those that it saw than on others."""
    unlabelled: int = 1_000_000
    """Queries without grades, and likewise documents, that take part at most: these are held in memory."""

    def __post_init__(self) -> None:
        if min(self.bm25, self.random, self.spans, self.unlabelled) < 0:
            raise UsageError("pairs: bm25, random, spans and unlabelled must be at least 0")


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs with what is known of them; no pair comes twice.

    Attributes:
        queries: texts.
        documents: texts.
        query_P: int64, positions in `queries`, ascending.
        document_P: int64, positions in `documents`.
        grade_P: float32 human grades in [0, 1]; NaN where there is none.
        teacher_P: float32 logits; NaN where the teacher was not asked.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    query_P: Ints
    document_P: Ints
    grade_P: Floats
    teacher_P: Floats

    def __len__(self) -> int:
        return len(self.query_P)

    def texts(self) -> list[tuple[str, str]]:
        """The pairs as (query, document)."""
        return [(self.queries[q], self.documents[d]) for q, d in zip(self.query_P, self.document_P, strict=True)]

    def digest(self) -> str:
        """sha256 of all of it: what is learned from pairs names them by it."""
        digest = hashlib.sha256("\0".join([*self.queries, "", *self.documents]).encode())
        for values_P in (self.query_P, self.document_P, self.grade_P, self.teacher_P):
            digest.update(values_P.tobytes())
        return digest.hexdigest()


def choose(dataset: Dataset, config: PairsConfig, *, seed: int) -> Pairs:
    """The pairs of training queries and of their stand-ins, not yet scored. One judged twice has its mean grade."""
    queries, documents = dataset.training_queries(config.unlabelled), dataset.corpus(config.unlabelled)
    queries = list(dict.fromkeys(chain(queries, dataset.stand_ins(documents, config.spans, seed=seed))))
    query_at = {query: number for number, query in enumerate(queries)}
    document_at = {document: number for number, document in enumerate(documents)}
    grades: dict[tuple[int, int], list[float]] = {}
    for pair in dataset.train.pairs:
        grades.setdefault((query_at[pair.query], document_at[pair.document]), []).append(pair.grade)
    chosen: dict[tuple[int, int], float] = {key: float(np.mean(values)) for key, values in grades.items()}
    _add(chosen, _neighbours(queries, documents, config.bm25))
    generator = np.random.default_rng(seed)
    _add(chosen, (generator.integers(len(documents), size=config.random) for _ in queries))
    keys = sorted(chosen)
    return Pairs(
        queries=queries,
        documents=documents,
        query_P=np.array([query for query, _ in keys], dtype=np.int64),
        document_P=np.array([document for _, document in keys], dtype=np.int64),
        grade_P=np.array([chosen[key] for key in keys], dtype=np.float32),
        teacher_P=np.full(len(keys), np.nan, dtype=np.float32),
    )


def judged(dataset: Dataset) -> Pairs:
    """Only the pairs that people judged: what a network without a teacher has to learn from."""
    return choose(dataset, PairsConfig(bm25=0, random=0, unlabelled=0), seed=0)


def part(pairs: Pairs, share: float) -> Pairs:
    """The pairs of a share of the queries: whole queries, the same ones everywhere, and a larger share has all of a
    smaller one. Texts stay.

    Raises:
        UsageError: no pair is left.
    """
    # Of other digits than splits and samples look at, which would make the share one of what they have left.
    kept_Q = np.array([int(hashlib.sha256(q.encode()).hexdigest()[16:24], 16) / 2**32 < share for q in pairs.queries])
    rows = np.flatnonzero(kept_Q[pairs.query_P])
    if not len(rows):
        raise UsageError(f"student: its share of {share:g} of the queries has no pair; give a larger one, or more data")
    columns = ("query_P", "document_P", "grade_P", "teacher_P")
    return replace(pairs, **{name: getattr(pairs, name)[rows] for name in columns})


def score(
    pairs: Pairs,
    teacher: Callable[[Sequence[tuple[str, str]]], Floats],
    cache: ScoreCache,
    report: Report,
    *,
    order: Callable[[str, str], tuple[int, str]] = lambda query, document: (len(query) + len(document), ""),
    accelerator: accelerate.Accelerator | None = None,
    stage: str = "pairs",
) -> Pairs:
    """The pairs with the teacher's logits: from the cache, and what is not there scored in `order` and added to it.

    Several processes share the work, where each has opened the cache in one state. Killed at any point, the next call
    asks for at most `_SCORED_AT_ONCE` pairs a process again.
    """
    accelerator = accelerator or new_accelerator()
    texts = pairs.texts()
    keys = [pair_key(*text) for text in texts]
    missing = [number for number, key in enumerate(keys) if key not in cache]
    missing.sort(key=lambda number: order(*texts[number]))
    blocks = [missing[start : start + _SCORED_AT_ONCE] for start in range(0, len(missing), _SCORED_AT_ONCE)]
    done = 0
    for start in range(0, len(blocks), accelerator.num_processes):
        shared = blocks[start : start + accelerator.num_processes]
        mine = shared[accelerator.process_index : accelerator.process_index + 1]
        said = gathered(accelerator, [teacher([texts[row] for row in rows]) for rows in mine])
        for rows, logits in zip(shared, chain.from_iterable(said), strict=True):
            cache.add([keys[row] for row in rows], logits)
            done += len(rows)
        report.progress(stage, done, len(missing), unit="pairs")
    teacher_P = np.array([cache[key] for key in keys], dtype=np.float32)
    return replace(pairs, teacher_P=teacher_P)


def pair_key(query: str, document: str) -> bytes:
    """What stands for a pair in the cache: 16 bytes of BLAKE2b over the digests of both texts."""
    digests = (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in (query, document))
    return hashlib.blake2b(b"".join(digests), digest_size=16).digest()


class ScoreCache:
    """A teacher's scores on disk, by pair. A file of one teacher, only ever appended to.

    The file is a line that names the teacher, then records of 24 bytes: key, float32 score, crc32 of both, all
    little-endian; the last record of an append has the complement of its crc32. When the file is opened, what follows
    the last whole append is dropped, so a kill or a full disk costs one append, and what is scored again has the
    company that it had.

    Args:
        directory: of the caches, one file a teacher.
        teacher: what names it and its precision, see `twinbert.training.devices.cache_name`.
        writes: false: another process writes the file, and this one remembers what is added.

    Raises:
        UsageError: the file cannot be opened.
    """

    _RECORD = np.dtype([("key", "V16"), ("score", "<f4"), ("crc", "<u4")])

    def __init__(self, directory: Path, teacher: str, *, writes: bool = True) -> None:
        self.path = directory / f"{teacher}.scores"
        head = f"twinbert teacher scores 2 {teacher}\n".encode()
        self._file: BinaryIO | None = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            content = self.path.read_bytes() if self.path.exists() else b""
            whole = content.startswith(head)
            self._scores = self._read(content[len(head) :] if whole else b"")
            if writes:
                self._file = self.path.open("ab")
                self._file.truncate(len(head) + self._whole * self._RECORD.itemsize if whole else 0)
                if not whole:
                    self._file.write(head)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be used as a cache ({error.strerror})") from error

    def _read(self, content: bytes) -> dict[bytes, float]:
        records = np.frombuffer(content, self._RECORD, count=len(content) // self._RECORD.itemsize)
        scores: dict[bytes, float] = {}
        appended: dict[bytes, float] = {}
        self._whole = 0
        for number, (record, score_, crc) in enumerate(
            zip(
                (content[at : at + 20] for at in range(0, records.nbytes, self._RECORD.itemsize)),
                records["score"].tolist(),
                records["crc"].tolist(),
                strict=True,
            ),
            start=1,
        ):
            found = zlib.crc32(record)
            if crc not in (found, found ^ _LAST):
                break
            appended[record[:16]] = score_
            if crc != found:
                scores |= appended
                appended, self._whole = {}, number
        return scores

    def __contains__(self, key: bytes) -> bool:
        return key in self._scores

    def __getitem__(self, key: bytes) -> float:
        return self._scores[key]

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, keys: Sequence[bytes], scores_P: Floats) -> None:
        """Appends scores; when it returns they are on the disk.

        Raises:
            UsageError: the file cannot be written.
        """
        self._scores.update(zip(keys, scores_P.astype(np.float32).tolist(), strict=True))
        if self._file is None or not keys:
            return
        packed = [key + value.tobytes() for key, value in zip(keys, scores_P.astype("<f4"), strict=True)]
        sums = [zlib.crc32(record) for record in packed]
        sums[-1] ^= _LAST
        try:
            self._file.write(
                b"".join(record + sum_.to_bytes(4, "little") for record, sum_ in zip(packed, sums, strict=True))
            )
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror}); what was there is kept") from error

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _add(chosen: dict[tuple[int, int], float], documents: Iterable[npt.NDArray[Any]]) -> None:
    """Adds unjudged documents of every query, in the order of queries."""
    for query, found in enumerate(documents):
        for document in found.tolist():
            chosen.setdefault((query, document), float("nan"))


def _neighbours(queries: Sequence[str], documents: Sequence[str], count: int) -> Iterable[Ints]:
    """The best documents of each query by BM25; those that share no word with it are left out.

    Weights are those of bm25s; queries are multiplied with them by the hundred, since its own search, a query at a
    time over every document, took 90 s for 9,400 queries and 53,000 documents.
    """
    if not count:
        return
    import bm25s
    from scipy.sparse import csr_array

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it would set itself to debug
    written = _words(documents)
    if not any(written):  # of two letters, and what it cannot index
        return
    index = bm25s.BM25()
    index.index(written, show_progress=False)
    weights = index.scores
    shape = (len(weights["indptr"]) - 1, len(documents))
    weights_TM = csr_array((weights["data"], weights["indices"], weights["indptr"]), shape=shape)
    for start in range(0, len(queries), _RETRIEVED_AT_ONCE):
        known = [
            [index.vocab_dict[word] for word in words if word in index.vocab_dict]
            for words in _words(queries[start : start + _RETRIEVED_AT_ONCE])
        ]
        ends = np.cumsum([0, *map(len, known)])
        words = np.array([word for row in known for word in row], dtype=np.int64)
        counts_QT = csr_array((np.ones(len(words), np.float32), words, ends), shape=(len(known), shape[0]))
        scores_QM = (counts_QT @ weights_TM).tocsr()
        scores_QM.sort_indices()  # so that of equal scores the first document wins
        for first, last in pairwise(scores_QM.indptr):
            best = np.argsort(-scores_QM.data[first:last], kind="stable")[:count]
            yield scores_QM.indices[first:last][best]


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    words: list[list[str]] = bm25s.tokenize(list(texts), stopwords=None, return_ids=False, show_progress=False)
    return words
