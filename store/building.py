"""Rows of a refresh in progress, on disk, so that a refresh that was killed is not encoded again.

A row depends on its text and on what the folder is named by, nothing else: rows are found again by the digest of the
text, whatever the document's id and whatever the order of the next run's input.

    building/<name>/vectors.bin  rows, appended
    building/<name>/entries.bin  ENTRY for each row, appended only after the row is durable
    building/<name>/ids.bin      ids of this run
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from store.encoding import Codec, Floats, Rows
from store.errors import StoreError
from store.files import abandon, reporting_full_disk, sync_directory
from store.format import BUILDING, DIGEST, F32, TOMBSTONE, U32

Digests = npt.NDArray[np.void]
Halves = npt.NDArray[np.uint64]  # of digests
RowNumbers = npt.NDArray[np.uint32]

ENTRY = np.dtype([("digest", DIGEST), ("scale", F32)])

# Rows become durable after this many bytes or seconds, whichever is first: what a kill can lose.
_SYNC_BYTES = 16 << 20
_SYNC_SECONDS = 2.0

_BLOCK = 1 << 18  # digests at a time, where all at once would take much memory


class DigestIndex:
    """Finds rows by the digest of their text. Digests are uniform, so their first 8 bytes sort and search well.

    Args:
        halves_n2: u64, the digests.
        rows_n: u32, the row of each.
    """

    def __init__(self, halves_n2: Halves, rows_n: RowNumbers) -> None:
        order = np.argsort(halves_n2[:, 0], kind="stable")  # linear where two sorted arrays follow each other
        self._halves_n2, self._rows_n = halves_n2[order], rows_n[order]

    def __len__(self) -> int:
        return len(self._rows_n)

    def __add__(self, other: DigestIndex) -> DigestIndex:
        """The rows of both."""
        halves = np.concatenate([self._halves_n2, other._halves_n2])
        return DigestIndex(halves, np.concatenate([self._rows_n, other._rows_n]))

    def find(self, wanted_N2: Halves) -> npt.NDArray[np.int64]:
        """Row numbers [N], -1 where no row has the digest."""
        places_N = np.searchsorted(self._halves_n2[:, 0], wanted_N2[:, 0]).clip(max=len(self) - 1)
        equal_N = (self._halves_n2[places_N] == wanted_N2).all(axis=1)
        return np.where(equal_N, self._rows_n[places_N].astype(np.int64), -1)


class StoredDigests:
    """The digests of rows that are there, as many as there may be.

    A small delta asks once. So the first time the digests are searched for those asked for, which takes a sixth of the
    time that an index takes to be made; from the second time on there is one.

    Args:
        digests_n: 16 bytes a row; they must stay mapped.
    """

    def __init__(self, digests_n: Digests) -> None:
        self._digests_n = digests_n
        self._index: DigestIndex | None = None
        self._asked = False

    def find(self, digests_N: Digests) -> npt.NDArray[np.int64]:
        """Row numbers [N], -1 where no row has the digest."""
        wanted_N2 = _halves(digests_N)
        if not len(self._digests_n) or not len(wanted_N2):
            return np.full(len(wanted_N2), -1)
        if not self._asked:
            self._asked = True
            return self._search(wanted_N2)
        if self._index is None:
            self._index = DigestIndex(_halves(self._digests_n), np.arange(len(self._digests_n), dtype=U32))
        return self._index.find(wanted_N2)

    def _search(self, wanted_N2: Halves) -> npt.NDArray[np.int64]:
        wanted, of_N = np.unique(wanted_N2[:, 0], return_inverse=True)
        rows = np.full(len(wanted), -1)
        for start in range(0, len(self._digests_n), _BLOCK):
            stored = _halves(self._digests_n[start : start + _BLOCK])[:, 0]
            places = np.searchsorted(wanted, stored).clip(max=len(wanted) - 1)
            hits = np.flatnonzero(wanted[places] == stored)
            rows[places[hits]] = start + hits
        rows_N = rows[of_N]
        equal_N = (_halves(self._digests_n[rows_N]) == wanted_N2).all(axis=1)
        return np.where(equal_N, rows_N, -1)


def _halves(digests_N: Digests) -> Halves:
    return np.ascontiguousarray(digests_N).view("<u8").reshape(-1, 2)


class Building:
    """The folder of a build, opened for appending after the whole rows that are there.

    Args:
        store: the store's folder.
        codec: how rows are stored.
        fingerprint: what the embeddings were made with.
        kind: of refresh. Each has its folder: what a long full refresh left must outlive the deltas that come first.
    """

    def __init__(self, store: Path, codec: Codec, fingerprint: str, kind: str) -> None:
        identity = [fingerprint, codec.name, codec.fixed_step, codec.dimension, kind]
        self.path = store / BUILDING / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self._codec = codec
        vectors, entries = self.path / "vectors.bin", self.path / "entries.bin"
        with reporting_full_disk(store):
            self.path.mkdir(parents=True, exist_ok=True)
            sync_directory(self.path.parent)
            for path in (vectors, entries):
                path.touch()
        rows = min(vectors.stat().st_size // codec.row_bytes, entries.stat().st_size // ENTRY.itemsize)
        os.truncate(vectors, rows * codec.row_bytes)
        os.truncate(entries, rows * ENTRY.itemsize)
        self.rows = rows
        self._stored = StoredDigests(self.entries()["digest"])  # of earlier runs
        self._indexes: list[DigestIndex] = []  # of rows of this one, each over twice as large as the next
        self._vectors = vectors.open("ab")
        self._entries = entries.open("ab")
        self._pending: list[npt.NDArray[np.void]] = []
        self._synced_rows, self._synced_at = rows, time.monotonic()

    def find(self, digests_N: Digests) -> npt.NDArray[np.int64]:
        """Row numbers [N], -1 where no row that is durable has the digest."""
        rows_N = self._stored.find(digests_N)
        wanted_N2 = _halves(digests_N)
        for index in self._indexes:
            rows_N = np.where(rows_N < 0, index.find(wanted_N2), rows_N)
        return rows_N

    def append(self, digests_N: Digests, rows_ND: Rows, scales_N: Floats | None) -> int:
        """Appends rows; returns the number of the first.

        Raises:
            StoreFullError: no space left; whole rows that are durable stay.
            StoreError: rows are numbered in 32 bits, and there are that many.
        """
        first = self.rows
        if first + len(rows_ND) > TOMBSTONE:  # only what many interrupted builds left can be this much
            raise StoreError(f"{self.path} has more rows than can be numbered; remove the folder and refresh again")
        entries = np.zeros(len(rows_ND), dtype=ENTRY)
        entries["digest"] = digests_N
        if scales_N is not None:
            entries["scale"] = scales_N
        try:
            with reporting_full_disk(self.path, rows_ND.nbytes):
                self._vectors.write(np.ascontiguousarray(rows_ND).data)
        except BaseException:
            abandon(self._vectors)  # nothing may follow what is perhaps half a row
            raise
        self._pending.append(entries)
        self.rows += len(rows_ND)
        overdue = time.monotonic() - self._synced_at > _SYNC_SECONDS
        if overdue or (self.rows - self._synced_rows) * self._codec.row_bytes > _SYNC_BYTES:
            self.sync()
        return first

    def sync(self) -> None:
        """Makes every appended row durable: the rows first, then the entries that vouch for them."""
        with reporting_full_disk(self.path, (self.rows - self._synced_rows) * self._codec.row_bytes):
            self._vectors.flush()
            os.fdatasync(self._vectors.fileno())
            if self._pending:
                entries = np.concatenate(self._pending)
                self._entries.write(entries.tobytes())
                self._entries.flush()
                os.fdatasync(self._entries.fileno())
                self._index(entries["digest"])
        self._pending.clear()
        self._synced_rows, self._synced_at = self.rows, time.monotonic()

    def _index(self, digests_N: Digests) -> None:
        """Lets the newest rows be found: texts come again, under the same id or another."""
        index = DigestIndex(_halves(digests_N), np.arange(self.rows - len(digests_N), self.rows, dtype=U32))
        while self._indexes and len(self._indexes[-1]) <= 2 * len(index):
            index = self._indexes.pop() + index
        self._indexes.append(index)

    def finish(self) -> None:
        """Makes every appended row durable; nothing is looked for any more."""
        self.sync()
        self._indexes.clear()
        self._stored = StoredDigests(np.empty(0, DIGEST))

    def vectors(self) -> Rows:
        """All rows [rows, D], as a map of the file; `sync` first."""
        if not self.rows:  # which cannot be mapped
            return np.empty((0, self._codec.dimension), self._codec.dtype)
        return np.memmap(self.path / "vectors.bin", self._codec.dtype, "r", shape=(self.rows, self._codec.dimension))

    def entries(self) -> npt.NDArray[np.void]:
        """ENTRY of each row, as a map of the file; `sync` first."""
        return np.memmap(self.path / "entries.bin", ENTRY, "r") if self.rows else np.empty(0, ENTRY)

    def close(self) -> None:
        """Leaves the folder for the next run; what was not synced yet is not vouched for."""
        abandon(self._vectors)
        abandon(self._entries)

    def remove(self) -> None:
        """Closes the folder and deletes it."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
