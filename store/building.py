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
from store.format import BUILDING, DIGEST, F32, TOMBSTONE

Digests = npt.NDArray[np.void]

ENTRY = np.dtype([("digest", DIGEST), ("scale", F32)])

# Rows become durable after this many bytes or seconds, whichever is first: what a kill can lose.
_SYNC_BYTES = 16 << 20
_SYNC_SECONDS = 2.0


class DigestIndex:
    """Finds rows by the digest of their text.

    Args:
        digests_n: 16 bytes a row; digests are uniform, so their first 8 bytes sort and search well.
    """

    def __init__(self, digests_n: Digests) -> None:
        halves_n2 = np.ascontiguousarray(digests_n).view("<u8").reshape(-1, 2)
        self._order_n = np.argsort(halves_n2[:, 0], kind="stable").astype(np.uint32)
        self._halves_n2 = halves_n2[self._order_n]

    def find(self, digests_N: Digests) -> npt.NDArray[np.int64]:
        """Row numbers [N], -1 where no row has the digest."""
        if not len(self._order_n):
            return np.full(len(digests_N), -1)
        wanted_N2 = np.ascontiguousarray(digests_N).view("<u8").reshape(-1, 2)
        places_N = np.searchsorted(self._halves_n2[:, 0], wanted_N2[:, 0]).clip(max=len(self._order_n) - 1)
        equal_N = (self._halves_n2[places_N] == wanted_N2).all(axis=1)
        return np.where(equal_N, self._order_n[places_N].astype(np.int64), -1)


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
        self.known = DigestIndex(self.entries()["digest"])
        self._vectors = vectors.open("ab")
        self._entries = entries.open("ab")
        self._pending: list[npt.NDArray[np.void]] = []
        self._synced_rows, self._synced_at = rows, time.monotonic()

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
                self._entries.write(np.concatenate(self._pending).tobytes())
                self._entries.flush()
                os.fdatasync(self._entries.fileno())
        self._pending.clear()
        self._synced_rows, self._synced_at = self.rows, time.monotonic()

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
