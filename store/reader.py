"""A generation that is open for reading: ids → embeddings, and a scan over all documents.

Shapes: N ids asked for, F of them found, D dimension.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from store.encoding import Codec, Floats, codec
from store.errors import CorruptError, IdTypeError
from store.files import REMEDY
from store.format import DATA, SEGMENTS
from store.keys import Keys, integer_keys, string_keys
from store.manifest import IdType, Manifest, SegmentEntry
from store.segment import Segment
from store.stack import Stack

_T = TypeVar("_T")
_REMEMBERED = 1000  # segments that were verified, those of deltas long gone among them
# How long a file that did not verify is taken to be damaged while nobody changes it: a server that tries again and
# again must not read gigabytes each time beside what it serves. Yet what was at fault may have been a cable.
_DAMAGED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Located:
    """Where documents are: `found` bool [N]; `rows` i64 [F], in the order asked for."""

    found: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int64]


_Identity = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class _Damage:
    """Of a file as it was then; `until` is of the monotonic clock."""

    identity: _Identity | None
    until: float
    message: str


class SegmentPool:
    """The segments that this process has open, each once however many generations share it.

    A segment is checked against size and checksum before it is first opened, and again only if its file has changed
    since; one that is damaged also when some minutes have passed. Safe to use from several threads.

    Args:
        store: the store's folder.

    Attributes:
        given_up: once set, no segment is verified any more.
    """

    def __init__(self, store: Path) -> None:
        self._folder = store / SEGMENTS
        self.given_up = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[str, tuple[Segment, object, int]] = {}  # with what it was opened as, and its users
        self._verified: dict[SegmentEntry, _Identity | None] = {}
        self._damaged: dict[SegmentEntry, _Damage] = {}

    def acquire(self, entry: SegmentEntry, codec: Codec, id_type: IdType) -> Segment:
        """Opens a segment, or counts one more user of it.

        Raises:
            CorruptError: it is not what its manifest says.
        """
        directory = self._folder / entry.id
        path = directory / DATA
        described = entry, codec.name, codec.fixed_step, codec.dimension, id_type
        with self._lock:
            segment, opened_as, users = self._open.get(entry.id, (None, described, 0))
            if opened_as != described:
                entry.file.check(path)
                raise CorruptError(
                    f"{path} is open as one generation describes it, and another describes it otherwise: one of them "
                    "was written wrong; refresh the store"
                )
            if segment is None:
                self._verify(entry, path)
                segment = Segment(directory, entry, codec, id_type)
            self._open[entry.id] = segment, described, users + 1
            return segment

    def _verify(self, entry: SegmentEntry, path: Path) -> None:
        identity = _identity(path)
        if identity is None or self._verified.pop(entry, None) != identity:
            damage = self._damaged.pop(entry, None)
            if damage is None or damage.identity != identity or time.monotonic() >= damage.until:
                try:
                    entry.file.check(path, given_up=self.given_up)
                except CorruptError as error:
                    damage = _Damage(identity, time.monotonic() + _DAMAGED_SECONDS, str(error))
                else:
                    damage = None
            if damage is not None:
                _remember(self._damaged, entry, damage)
                raise CorruptError(damage.message)
        _remember(self._verified, entry, identity)

    def stack(self, manifest: Manifest, entries: Sequence[SegmentEntry]) -> Stack:
        """Opens some segments of a generation, newest first, all or none; to be given back with `release_all`.

        Raises:
            CorruptError: one of them is not what the manifest says.
        """
        described = codec(manifest.encoding, manifest.dimension, fixed_step=manifest.fixed_step)
        with contextlib.ExitStack() as stack:
            segments = []
            for entry in entries:
                segments.append(self.acquire(entry, described, manifest.id_type))
                stack.callback(self.release, segments[-1])
            made = Stack(segments)
            stack.pop_all()
            return made

    def release_all(self, stack: Stack) -> None:
        """Gives up one use of each segment."""
        for segment in stack.segments:
            self.release(segment)

    def release(self, segment: Segment) -> None:
        """Gives up one use; the last one unmaps the segment."""
        with self._lock:
            _, described, users = self._open[segment.entry.id]
            if users > 1:
                self._open[segment.entry.id] = segment, described, users - 1
            else:
                del self._open[segment.entry.id]
                segment.close()


def _remember(known: dict[SegmentEntry, _T], entry: SegmentEntry, value: _T) -> None:
    """Puts what is known of a segment last, and forgets what has been there longest."""
    known[entry] = value
    if len(known) > _REMEMBERED:
        del known[next(iter(known))]


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Generation:
    """An open generation. Close it when nothing reads it any more.

    Its rows are numbered through all of its segments, dead ones too: see `store.stack`.

    Args:
        manifest: what it is.
        pool: the process's open segments.

    Raises:
        CorruptError: a segment is not what the manifest says, or they are not as many documents as it says.
    """

    def __init__(self, manifest: Manifest, pool: SegmentPool) -> None:
        self.manifest, self.name = manifest, manifest.name
        self.codec = codec(manifest.encoding, manifest.dimension, fixed_step=manifest.fixed_step)
        self._pool = pool
        self.stack = pool.stack(manifest, manifest.segments)
        if self.stack.documents != manifest.documents:
            self.close()
            raise CorruptError(
                f"generation {self.name} says that it has {manifest.documents:,} documents, its segments have "
                f"{self.stack.documents:,}: it was written wrong; {REMEDY}"
            )

    def locate(self, ids: Sequence[str] | npt.NDArray[np.uint64]) -> Located:
        """Finds documents by id: strings, or a u64 array where the store's ids are integers.

        Raises:
            IdTypeError: ids of the other type.
        """
        rows, found = self.stack.find(self._keys(ids))
        return Located(found, rows)

    def _keys(self, ids: Sequence[str] | npt.NDArray[np.uint64]) -> Keys:
        integers = isinstance(ids, np.ndarray)
        if integers != (self.manifest.id_type == "integer"):
            raise IdTypeError(f"the ids of this store are {self.manifest.id_type}s, the ones asked for are not")
        if isinstance(ids, np.ndarray):
            return integer_keys(ids, self.manifest.seed)
        return string_keys(ids, self.manifest.seed)

    def read(self, located: Located) -> Floats:
        """Embeddings of the documents found: float32 [F, D]."""
        return self.stack.read(located.rows)

    def read_rows(self, rows_N: npt.NDArray[np.int64]) -> Floats:
        """Embeddings of rows: float32 [N, D]."""
        return self.stack.read(rows_N)

    def times(self, located: Located) -> npt.NDArray[np.int64]:
        """Source times of the documents found, in milliseconds since the Unix epoch: i64 [F]."""
        return self.stack.times(located.rows)

    def deleted(self, ids: Sequence[str] | npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Which ids have a tombstone: they were here until a delta deleted them. bool [N]. Compaction forgets them."""
        return self.stack.tombstones(self._keys(ids))

    def warm(self) -> None:
        """Maps every page, so that no request pays for it."""
        self.stack.touch()

    def scan(self, block: int) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """Every document, in blocks: their rows i64 [R], R ≤ block, and their embeddings float32 [R, D]."""
        return self.stack.scan(block)

    def rows_at(self, places_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows i64 [N] of the documents at some places, from 0 to the number of documents − 1: for samples of them."""
        return self.stack.rows_at(places_N)

    def ids(self, rows: npt.NDArray[np.int64]) -> list[str] | list[int]:
        """The ids of rows."""
        return self.stack.ids(rows)

    def close(self) -> None:
        """Gives the segments back; nothing may be reading them."""
        self._pool.release_all(self.stack)
