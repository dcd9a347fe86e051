"""Segments that lie over each other, read as one: of a key that stands in several, the newest segment counts.

Shapes: N rows or keys asked for, m keys of all segments but the oldest, D dimension.

Rows are numbered through, from the oldest segment's first to the newest one's last: row r of a segment that comes after
`start` rows is row `start + r` of the stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from store.encoding import Floats
from store.format import DIGEST, TOMBSTONE, U64
from store.keys import Keys
from store.segment import Segment

RowNumbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_DELETED = -1  # stands for a tombstone where rows are numbered through
_BLOCK = 1 << 16  # keys at a time, where all at once would take much memory


class Stack:
    """Open segments, which must outlive it.

    What is newer than the oldest segment is small, so its index is merged in memory: a lookup searches twice, however
    many segments there are. That takes 16 bytes for each of the m keys, and 8 for each dead row.

    Args:
        segments: newest first; of one store, codec and id type.

    Attributes:
        segments: oldest first.
        starts: i64, the number of each segment's first row; one more at the end, which is the number of all rows.
        dead: i64, ascending: rows that a newer segment replaces or deletes.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(reversed(segments))
        self.starts = np.cumsum([0, *(segment.entry.documents for segment in self.segments)])
        self._firsts = [np.array(start) for start in self.starts[:-1]]  # arrays spare numpy a conversion a lookup
        self.dead: RowNumbers = np.empty(0, np.int64)
        self._keys_m: Keys = np.empty(0, U64)
        self._rows_m: RowNumbers = np.empty(0, np.int64)
        if len(self.segments) > 1:
            self._lay_over()

    def _lay_over(self) -> None:
        newest_first = list(zip(self.starts, self.segments, strict=False))[:0:-1]
        keys = np.concatenate([segment.index.arrays[0] for _, segment in newest_first])
        rows = np.concatenate([_numbered(start, segment) for start, segment in newest_first])
        self._keys_m, first_m = np.unique(keys, return_index=True)  # of equal keys the first, which is the newest
        self._rows_m = rows[first_m]
        replaced = np.delete(rows, first_m)
        dead = [replaced[replaced != _DELETED]]
        for start in range(0, len(self._keys_m), _BLOCK):
            rows_F, _ = self.segments[0].index.find(self._keys_m[start : start + _BLOCK])
            dead.append(rows_F[rows_F != TOMBSTONE].astype(np.int64))
        self.dead = np.sort(np.concatenate(dead))

    @property
    def documents(self) -> int:
        """How many rows are not dead."""
        return int(self.starts[-1]) - len(self.dead)

    @property
    def deleted(self) -> Keys:
        """Keys that have a tombstone and no row, u64: of a generation those that an older segment had."""
        keys, rows, _ = self.segments[0].index.arrays
        gone: Keys = keys[rows == TOMBSTONE]
        return np.concatenate([np.setdiff1d(gone, self._keys_m), self._keys_m[self._rows_m == _DELETED]])

    def find(self, keys_N: Keys) -> tuple[RowNumbers, Flags]:
        """Rows i64 [F] of those keys that have one, in the order asked for, and which those are [N]. The oldest segment
        must be without tombstones.
        """
        oldest_F, found_N = self.segments[0].index.find(keys_N)
        rows_F = oldest_F.astype(np.int64)
        if len(self.segments) == 1:
            return rows_F, found_N
        places_N, covered_N = self._newer(keys_N)
        if not np.count_nonzero(covered_N):
            return rows_F, found_N
        rows_N = rows_F
        if len(rows_F) < len(keys_N):
            rows_N = np.full(len(keys_N), _DELETED)
            rows_N[found_N] = rows_F
        np.copyto(rows_N, self._rows_m.take(places_N, mode="clip"), where=covered_N)
        found_N = rows_N != _DELETED
        return rows_N[found_N], found_N

    def tombstones(self, keys_N: Keys) -> Flags:
        """Which keys have a tombstone that counts: bool [N]."""
        if len(self.segments) == 1:
            return np.zeros(len(keys_N), np.bool_)
        places_N, covered_N = self._newer(keys_N)
        deleted_N: Flags = covered_N & (self._rows_m.take(places_N, mode="clip") == _DELETED)
        return deleted_N

    def _newer(self, keys_N: Keys) -> tuple[RowNumbers, Flags]:
        """Places among the keys of the newer segments, and whether each key is one of them; else it is any place.

        A search by bisection is a third of the numpy calls of `Index.find`, which is made for more keys than these.
        """
        places_N = self._keys_m.searchsorted(keys_N)
        return places_N, self._keys_m.take(places_N, mode="clip") == keys_N

    def rows_at(self, places_N: npt.NDArray[np.int64]) -> RowNumbers:
        """Rows of the documents at these places, from 0 to `documents` − 1, dead rows not counted: i64 [N]."""
        before = self.dead - np.arange(len(self.dead))  # documents before each dead row
        rows_N: RowNumbers = places_N + np.searchsorted(before, places_N, side="right")
        return rows_N

    def cut(self, rows_N: RowNumbers) -> Iterator[tuple[Segment, RowNumbers, RowNumbers]]:
        """Divides rows among their segments: a segment, the places in `rows_N`, and the segment's own row numbers."""
        order_N = rows_N.argsort()
        sorted_N = rows_N.take(order_N)
        cuts = pairwise(sorted_N.searchsorted(self.starts).tolist())
        for segment, first, (begin, end) in zip(self.segments, self._firsts, cuts, strict=False):
            if begin < end:
                yield segment, order_N[begin:end], sorted_N[begin:end] - first

    def read(self, rows_N: RowNumbers) -> Floats:
        """Embeddings of rows: float32 [N, D]."""
        oldest, end = self.segments[0], self.starts[1]
        if len(self.segments) == 1:
            return oldest.read(rows_N)
        if not np.count_nonzero(rows_N >= end):
            return oldest.read(rows_N)
        # Nearly all are the oldest segment's: one call takes them, and any row of it in place of the others.
        rows_ND, scales_N = oldest.raw(np.minimum(rows_N, end - 1))
        for segment, here, rows in self.cut(rows_N):
            if segment is not oldest:
                rows_ND[here], scales = segment.raw(rows)
                if scales_N is not None:
                    scales_N[here] = scales
        return oldest.codec.decode(rows_ND, scales_N)

    def ids(self, rows_N: RowNumbers) -> list[Any]:
        """Ids of rows: all strings, or all integers."""
        if len(self.segments) == 1:
            return self.segments[0].ids.take(rows_N)
        ids: list[Any] = [None] * len(rows_N)
        for segment, here, rows in self.cut(rows_N):
            for place, id_ in zip(here.tolist(), segment.ids.take(rows), strict=True):
                ids[place] = id_
        return ids

    def digests(self, rows_N: RowNumbers) -> npt.NDArray[np.void]:
        """Digests of the texts of rows: V16 [N]."""
        digests_N = np.empty(len(rows_N), DIGEST)
        for segment, here, rows in self.cut(rows_N):
            digests_N[here] = segment.digests[rows]
        return digests_N

    def times(self, rows_N: RowNumbers) -> npt.NDArray[np.int64]:
        """Source times of rows, in milliseconds since the Unix epoch: i64 [N]."""
        if len(self.segments) == 1:
            return self.segments[0].times.take(rows_N)
        times_N = np.empty(len(rows_N), np.int64)
        for segment, here, rows in self.cut(rows_N):
            times_N[here] = segment.times[rows]
        return times_N

    def scan(self, block: int) -> Iterator[tuple[RowNumbers, Floats]]:
        """All rows that are not dead, in blocks of at most `block`: their numbers i64 [R] and embeddings [R, D]."""
        for start, segment in zip(self.starts.tolist(), self.segments, strict=False):
            for first, vectors_RD in segment.scan(block):
                rows_R = np.arange(start + first, start + first + len(vectors_RD))
                dead_R = self._dead_among(rows_R)
                if not dead_R.any():
                    yield rows_R, vectors_RD
                elif not dead_R.all():
                    yield rows_R[~dead_R], vectors_RD[~dead_R]

    def _dead_among(self, rows_R: RowNumbers) -> Flags:
        """Which of consecutive rows are dead."""
        dead_R = np.zeros(len(rows_R), np.bool_)
        begin, end = np.searchsorted(self.dead, (rows_R[0], rows_R[-1] + 1)).tolist()
        dead_R[self.dead[begin:end] - rows_R[0]] = True
        return dead_R

    def touch(self) -> None:
        """Reads a byte of every page that lookups use."""
        for segment in self.segments:
            segment.touch()


def _numbered(start: np.int64, segment: Segment) -> RowNumbers:
    """The rows of a segment's index as the stack numbers them; `_DELETED` where there is a tombstone."""
    rows = segment.index.arrays[1]
    return np.where(rows == TOMBSTONE, _DELETED, rows + start)
