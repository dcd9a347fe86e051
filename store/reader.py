"""A generation that is open for reading: ids → embeddings, and a scan over all rows.

Shapes: N ids asked for, F of them found, D dimension.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from store.encoding import Codec, Floats, codec
from store.errors import CorruptError, IdTypeError
from store.format import DATA, SEGMENTS, TOMBSTONE
from store.keys import Keys, integer_keys, string_keys
from store.manifest import IdType, Manifest, SegmentEntry
from store.segment import Segment


@dataclass(frozen=True, slots=True)
class Located:
    """Where documents are: `found` bool [N]; `rows` u32 [F], in the order asked for."""

    found: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.uint32]


class SegmentPool:
    """The segments that this process has open, each once however many generations share it.

    A segment is checked against size and checksum before it is first opened, and again only if its file has changed
    since. Safe to use from several threads.

    Args:
        store: the store's folder.
    """

    def __init__(self, store: Path) -> None:
        self._folder = store / SEGMENTS
        self._lock = threading.Lock()
        self._open: dict[str, tuple[Segment, object, int]] = {}  # with what it was opened as, and its users
        self._verified: dict[SegmentEntry, tuple[int, int, int] | None] = {}

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
                if entry not in self._verified or self._verified[entry] != _identity(path):
                    entry.file.check(path)
                    self._verified[entry] = _identity(path)
                segment = Segment(directory, entry, codec, id_type)
            self._open[entry.id] = segment, described, users + 1
            return segment

    def release(self, segment: Segment) -> None:
        """Gives up one use; the last one unmaps the segment."""
        with self._lock:
            _, described, users = self._open[segment.entry.id]
            if users > 1:
                self._open[segment.entry.id] = segment, described, users - 1
            else:
                del self._open[segment.entry.id]
                segment.close()


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Generation:
    """An open generation. Close it when nothing reads it any more.

    Args:
        manifest: what it is.
        pool: the process's open segments.
    """

    def __init__(self, manifest: Manifest, pool: SegmentPool) -> None:
        self.manifest, self.name = manifest, manifest.name
        self.codec = codec(manifest.encoding, manifest.dimension, fixed_step=manifest.fixed_step)
        self._pool = pool
        self.segment = pool.acquire(manifest.segments[0], self.codec, manifest.id_type)

    def locate(self, ids: Sequence[str] | npt.NDArray[np.uint64]) -> Located:
        """Finds documents by id: strings, or a u64 array where the store's ids are integers.

        Raises:
            IdTypeError: ids of the other type.
        """
        rows, found = self.segment.index.find(self._keys(ids))
        return Located(found, rows if found.all() else rows[found])

    def _keys(self, ids: Sequence[str] | npt.NDArray[np.uint64]) -> Keys:
        integers = isinstance(ids, np.ndarray)
        if integers != (self.manifest.id_type == "integer"):
            raise IdTypeError(f"the ids of this store are {self.manifest.id_type}s, the ones asked for are not")
        if isinstance(ids, np.ndarray):
            return integer_keys(ids, self.manifest.seed)
        return string_keys(ids, self.manifest.seed)

    def read(self, located: Located) -> Floats:
        """Embeddings of the documents found: float32 [F, D]."""
        return self.segment.read(located.rows)

    def times(self, located: Located) -> npt.NDArray[np.int64]:
        """Source times of the documents found, in milliseconds since the Unix epoch: i64 [F]."""
        return self.segment.times.take(located.rows)

    def deleted(self, ids: Sequence[str] | npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Of ids that are not found, which have a tombstone: they were here until they were deleted. bool [N]."""
        rows, known = self.segment.index.find(self._keys(ids))
        deleted_N: npt.NDArray[np.bool_] = known & (rows == TOMBSTONE)
        return deleted_N

    def rows_at(self, places_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows i64 [N] of the documents at some places, from 0 to the number of documents − 1: for samples of them."""
        return places_N

    def warm(self) -> None:
        """Maps every page, so that no request pays for it."""
        self.segment.touch()

    def scan(self, block: int) -> Iterator[tuple[int, Floats]]:
        """Every row in blocks: the number of a block's first row, and its embeddings float32 [≤ block, D]."""
        return self.segment.scan(block)

    def ids(self, rows: npt.NDArray[np.int64]) -> list[str] | list[int]:
        """The ids of rows."""
        return self.segment.ids.take(rows)

    def close(self) -> None:
        """Gives the segments back; nothing may be reading them."""
        self._pool.release(self.segment)
