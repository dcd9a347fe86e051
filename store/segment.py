"""A segment: an immutable LMDB environment whose values are a few large arrays, read in place through its map.

Shapes: n rows of the segment, t tombstones, N rows asked for, D dimension. Arrays that point into the map never leave
this package.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt

from store import format as fmt
from store.encoding import Codec, Floats, Rows
from store.errors import CorruptError, StoreError
from store.files import reporting_full_disk, sync_directory, sync_file
from store.keys import Index, Keys, build_buckets
from store.manifest import IdType, SegmentEntry

Bytes = npt.NDArray[np.uint8]

_CHUNK = 1 << 10  # ids at a time: of the longest ids, half a megabyte of text and 12 of places


@dataclass(frozen=True, kw_only=True, slots=True)
class Ids:
    """The ids of n rows: `numbers` u64 [n], or UTF-8 `text` cut at `offsets` u64 [n + 1]."""

    numbers: npt.NDArray[np.uint64] | None = None
    offsets: npt.NDArray[np.uint64] | None = None
    text: Bytes | None = None

    def take(self, rows_N: npt.NDArray[Any]) -> list[str] | list[int]:
        """The ids of some rows."""
        if self.numbers is not None:
            numbers: list[int] = self.numbers[rows_N].tolist()
            return numbers
        assert self.offsets is not None
        assert self.text is not None
        starts, ends = self.offsets[rows_N].tolist(), self.offsets[rows_N + 1].tolist()
        return [self.text[start:end].tobytes().decode() for start, end in zip(starts, ends, strict=True)]

    def subset(self, rows_N: npt.NDArray[Any]) -> Ids:
        """The ids of some rows, in their order, copied."""
        if self.numbers is not None:
            return Ids(numbers=self.numbers[rows_N])
        assert self.offsets is not None
        assert self.text is not None
        offsets = np.zeros(len(rows_N) + 1, dtype=fmt.U64)
        offsets[1:] = self.offsets[1:][rows_N]
        offsets[1:] -= self.offsets[rows_N]
        np.cumsum(offsets, out=offsets)
        text = np.empty(int(offsets[-1]), dtype=np.uint8)
        for first in range(0, len(rows_N), _CHUNK):
            cuts = offsets[first : first + _CHUNK + 1]
            # Byte k of the copy comes from its id's start in `text` plus its place within the id.
            shift = np.repeat(self.offsets[rows_N[first : first + _CHUNK]] - cuts[:-1], np.diff(cuts).astype(np.int64))
            begin, end = int(cuts[0]), int(cuts[-1])
            text[begin:end] = self.text[shift + np.arange(begin, end, dtype=fmt.U64)]
        return Ids(offsets=offsets, text=text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What a segment holds beside its vectors: see `store.format`. `keys` u64 [n] are in the order of the rows,
    `deleted` u64 [t] are those that have a tombstone instead of one.
    """

    keys: Keys
    deleted: Keys
    ids: Ids
    digests: npt.NDArray[np.void]
    times: npt.NDArray[np.int64]
    scales: Floats | None


def write_segment(directory: Path, vectors_nD: Rows, columns: Columns, *, part_bytes: int = fmt.MAX_PART_BYTES) -> None:
    """Writes `directory`/data.mdb, durably.

    The vectors are put from where they are, ordinarily a memory map of the building file, straight into the map of the
    environment: they are never copied to the heap. Space is allocated first, since running out of it while writing
    through a map would kill the process.

    Args:
        directory: an existing, empty directory.
        vectors_nD: rows in the encoding's dtype, [n, D].
        columns: all else, parallel to the rows.
        part_bytes: largest value; only tests set it.
    """
    keys = np.concatenate([columns.keys, columns.deleted]) if len(columns.deleted) else columns.keys
    rows = np.argsort(keys, kind="stable").astype(fmt.U32)
    keys = keys[rows]
    rows[rows >= len(vectors_nD)] = fmt.TOMBSTONE
    rows_per_part = max(1, part_bytes // (vectors_nD.shape[1] * vectors_nD.itemsize))
    parts = range(0, len(vectors_nD), rows_per_part)
    databases: Mapping[bytes, dict[bytes, npt.NDArray[Any] | None]] = {
        fmt.VECTORS: {fmt.part_key(i): vectors_nD[start : start + rows_per_part] for i, start in enumerate(parts)},
        fmt.INDEX: {fmt.KEYS: keys, fmt.ROWS: rows, fmt.BUCKETS: build_buckets(keys)},
        fmt.DOCUMENTS: {
            fmt.NUMBERS: columns.ids.numbers,
            fmt.ID_OFFSETS: columns.ids.offsets,
            fmt.ID_BYTES: columns.ids.text,
            fmt.DIGESTS: columns.digests,
            fmt.TIMES: columns.times,
            fmt.SCALES: columns.scales,
        },
    }
    values = [value for database in databases.values() for value in database.values() if value is not None]
    pages = sum(2 + (fmt.PAGE_HEADER + value.nbytes) // PAGESIZE for value in values)
    size = (pages + 64) * PAGESIZE  # 64: meta pages, tree roots and the list of free pages
    path = directory / fmt.DATA
    with reporting_full_disk(directory, size):
        with path.open("wb") as file:
            # Where no file may be this large, or not even LMDB's meta pages have room, this fails with an error number,
            # which LMDB's own errors lack.
            file.truncate(size)
            os.posix_fallocate(file.fileno(), 0, 2 * PAGESIZE)
            file.truncate(0)  # LMDB takes an empty file for a new environment
        env = lmdb.open(str(directory), map_size=size, max_dbs=len(databases), writemap=True, lock=False, sync=False)
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
            with env.begin(write=True) as transaction:
                for name, database in databases.items():
                    db = env.open_db(name, txn=transaction)
                    for key, value in database.items():
                        if value is not None:
                            # An empty array cannot be cast to bytes; LMDB takes an empty value.
                            content = np.ascontiguousarray(value).data.cast("B") if value.size else b""
                            transaction.put(key, content, db=db, append=False)
            env.sync(True)
            used = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        finally:
            env.close()
        os.truncate(path, used)
        sync_file(path)
        sync_directory(directory)


class Segment:
    """A segment that is open for reading.

    Args:
        directory: the folder with data.mdb. Its checksum must have been checked: LMDB itself detects nothing, and a
            file that was cut off kills the process that reads it.
        entry: what the manifest says of it.
        codec: the generation's codec.
        id_type: the store's id type.

    Raises:
        CorruptError: the arrays do not fit together.
        StoreError: another `Store` of this process has it open.
    """

    def __init__(self, directory: Path, entry: SegmentEntry, codec: Codec, id_type: IdType) -> None:
        self.entry, self.codec = entry, codec
        path = directory / fmt.DATA
        try:
            self._env = lmdb.open(
                str(directory), readonly=True, lock=False, max_dbs=3, map_size=path.stat().st_size, readahead=False
            )
        except (lmdb.Error, OSError) as error:
            if "already open in this process" in str(error):  # LMDB has no class of error for it
                raise StoreError(
                    f"{path} is open in this process through another Store; make one for each folder and share it"
                ) from error
            raise CorruptError(f"{path} cannot be opened: {error}") from error
        try:
            self._transaction = self._env.begin(buffers=True)
            self._read_arrays(id_type)
        except (lmdb.Error, ValueError) as error:
            self.close()
            raise CorruptError(f"{path} is not a segment that this version can read: {error}") from error

    def _read_arrays(self, id_type: IdType) -> None:
        n, row_bytes = self.entry.documents, self.codec.row_bytes
        count_keys = n + self.entry.deleted
        vectors = self._env.open_db(fmt.VECTORS, txn=self._transaction, create=False)
        count = self._transaction.stat(vectors)["entries"]
        parts = [self._array(vectors, fmt.part_key(part), self.codec.dtype) for part in range(count)]
        self._parts = [part.reshape(-1, self.codec.dimension) for part in parts]
        self._rows_per_part = len(self._parts[0]) if self._parts else 0
        lengths = [len(part) for part in self._parts]
        if sum(lengths) != n or any(length != self._rows_per_part for length in lengths[:-1]):
            raise ValueError(f"its vectors are {sum(lengths)} rows of {row_bytes} bytes, not {n}")

        index = self._env.open_db(fmt.INDEX, txn=self._transaction, create=False)
        keys = self._array(index, fmt.KEYS, fmt.U64, count_keys)
        rows = self._array(index, fmt.ROWS, fmt.U32, count_keys)
        buckets = self._array(index, fmt.BUCKETS, fmt.U32, (1 << count_keys.bit_length()) + 1)
        # A row number beyond n is none but a tombstone's, of which there are as many as the manifest says.
        if np.count_nonzero(rows < n) != n or np.count_nonzero(rows == fmt.TOMBSTONE) != count_keys - n:
            raise ValueError("its index points outside its rows")
        if buckets[-1] != count_keys:
            raise ValueError("its buckets do not fit its index")
        self.index = Index(keys, rows, buckets)

        documents = self._env.open_db(fmt.DOCUMENTS, txn=self._transaction, create=False)
        if id_type == "integer":
            self.ids = Ids(numbers=self._array(documents, fmt.NUMBERS, fmt.U64, n))
        else:
            offsets = self._array(documents, fmt.ID_OFFSETS, fmt.U64, n + 1)
            self.ids = Ids(offsets=offsets, text=self._array(documents, fmt.ID_BYTES, np.dtype("u1"), int(offsets[-1])))
        self.digests = self._array(documents, fmt.DIGESTS, fmt.DIGEST, n)
        self.times = self._array(documents, fmt.TIMES, fmt.I64, n)
        self._scales = self._array(documents, fmt.SCALES, fmt.F32, n) if self.codec.has_scales else None

    def _array(
        self, db: lmdb._Database, key: bytes, dtype: np.dtype[Any], count: int | None = None
    ) -> npt.NDArray[Any]:
        value = self._transaction.get(key, db=db)
        if value is None:
            raise ValueError(f"it has no {key.decode()}")
        array = np.frombuffer(value, dtype=dtype)
        if count is not None and len(array) != count:
            raise ValueError(f"its {key.decode()} are {len(array)}, not {count}")
        return array

    def keys(self) -> Keys:
        """The document key of each row: u64 [n], made anew."""
        keys, rows, _ = self.index.arrays
        there = rows != fmt.TOMBSTONE
        keys_n = np.empty(self.entry.documents, fmt.U64)
        keys_n[rows[there]] = keys[there]
        return keys_n

    def raw(self, rows_N: npt.NDArray[Any]) -> tuple[Rows, Floats | None]:
        """Stored rows [N, D] and their scales [N] or None, copied."""
        scales_N = None if self._scales is None else self._scales.take(rows_N)
        if len(self._parts) == 1:
            return self._parts[0].take(rows_N, axis=0), scales_N
        rows_ND = np.empty((len(rows_N), self.codec.dimension), dtype=self.codec.dtype)
        part_N, row_N = np.divmod(rows_N.astype(np.int64), self._rows_per_part)
        for part in np.unique(part_N).tolist():
            here = part_N == part
            rows_ND[here] = self._parts[part].take(row_N[here], axis=0)
        return rows_ND, scales_N

    def read(self, rows_N: npt.NDArray[Any]) -> Floats:
        """Embeddings of some rows: float32 [N, D]."""
        return self.codec.decode(*self.raw(rows_N))

    def scan(self, block: int) -> Iterator[tuple[int, Floats]]:
        """All embeddings in blocks of at most `block` rows: the first row's number, and float32 [≤ block, D]."""
        first = 0
        for part in self._parts:
            for start in range(0, len(part), block):
                rows = np.array(part[start : start + block])
                scales = None if self._scales is None else self._scales[first : first + len(rows)]
                yield first, self.codec.decode(rows, scales)
                first += len(rows)

    def touch(self) -> None:
        """Reads a byte of every page that lookups use."""
        for array in (*self._parts, *self.index.arrays, self.times):
            array.reshape(-1).view(np.uint8)[::PAGESIZE].max(initial=0)  # of deletions only, some are empty

    def close(self) -> None:
        """Unmaps the segment; nothing may be reading it."""
        for name in ("index", "ids", "digests", "times", "_scales", "_parts"):
            if hasattr(self, name):
                delattr(self, name)
        if hasattr(self, "_transaction"):
            self._transaction.abort()
        self._env.close()
