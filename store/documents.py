"""The documents of a refresh, gathered as columns: 24 bytes of memory a document at most, ids on disk.

Shapes: N documents of a batch, n documents of the whole refresh. A deletion is a document whose row is TOMBSTONE.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from store.changes import Clash, resolve
from store.errors import EmptyGenerationError, IdTypeError, StoreError
from store.files import abandon, reporting_full_disk
from store.format import MAX_ID_BYTES, MAX_ID_TEXT_BYTES, MAX_ROWS, U64
from store.keys import Keys, bytes_keys, integer_keys
from store.manifest import IdType
from store.segment import Ids
from store.stack import Stack

_CHUNK = 1 << 10  # ids at a time: each becomes an object
_MAX_SEEDS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """N documents on their way into a store.

    Attributes:
        ids: strings, or integers from 0 to 2^64 - 1, as the store's id type says.
        digests: 16 bytes each: `store.writer.digests` of the text.
        times: i64 [N], source time in milliseconds since the Unix epoch.
        positions: i64 [N], place in the input; of two documents with one id the later place wins.
    """

    ids: Sequence[str] | Sequence[int]
    digests: npt.NDArray[np.void]
    times: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    def take(self, mask_N: npt.NDArray[np.bool_]) -> Batch:
        """The documents where the mask is set."""
        places = np.flatnonzero(mask_N).tolist()
        ids: Any = [self.ids[place] for place in places]
        return Batch(ids=ids, digests=self.digests[mask_N], times=self.times[mask_N], positions=self.positions[mask_N])


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """What is left after of every id the last document won, in the order of `rows`.

    Attributes:
        seed: of `keys`.
        keys: of the documents to store; `rows`, `times` and `ids` are parallel to it.
        deleted: keys that get a tombstone.
        documents: how many the next generation has.
        duplicates: documents and deletions whose id came again later.
        absent: deletions of ids that are not there.
        clashes: documents that are left out.
    """

    seed: int
    keys: Keys
    rows: npt.NDArray[np.uint32]
    times: npt.NDArray[np.int64]
    ids: Ids
    deleted: Keys
    documents: int
    duplicates: int
    absent: int = 0
    clashes: tuple[Clash, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        """Whether there is neither a row nor a tombstone to store."""
        return not len(self.rows) and not len(self.deleted)


class Documents:
    """Collects batches, then decides which document each id stands for.

    Args:
        folder: where ids are spooled.
        id_type: what ids are.
        seed: the first hash seed to try.
    """

    def __init__(self, folder: Path, id_type: IdType, seed: int) -> None:
        self._id_type, self._seed = id_type, seed
        self._path = folder / "ids.bin"
        self._spool = self._path.open("wb")
        # An `array` grows in place, by a sixteenth: its memory does not depend on the size of the batches.
        self._rows, self._lengths = array("I"), array("H")
        self._times, self._positions = array("q"), array("q")

    def add(self, batch: Batch, rows_N: npt.NDArray[np.int64]) -> None:
        """Adds documents whose embeddings are the building's rows `rows_N`.

        Raises:
            IdTypeError: ids are not of the store's type.
            StoreError: they are more than a segment can hold.
        """
        lengths: list[int] = []
        if self._id_type == "integer":
            spooled = _numbers(batch.ids)
        else:
            encoded = _encoded(batch.ids)
            lengths, spooled = list(map(len, encoded)), b"".join(encoded)
        if len(self._rows) + len(rows_N) > MAX_ROWS or self._spool.tell() + len(spooled) > MAX_ID_TEXT_BYTES:
            raise StoreError(
                f"a store holds at most {MAX_ROWS:,} documents, counting those that come again, and "
                f"{MAX_ID_TEXT_BYTES:,} bytes of ids; shard the corpus over several stores"
            )
        with reporting_full_disk(self._path.parent, len(spooled)):
            self._spool.write(spooled)
        self._lengths.extend(lengths)
        self._rows.frombytes(rows_N.astype(np.uint32).tobytes())
        self._times.frombytes(batch.times.astype(np.int64).tobytes())
        self._positions.frombytes(batch.positions.astype(np.int64).tobytes())

    def resolve(self) -> Resolved:
        """Keeps the last document of each id, and finds a seed under which no two ids share a key. To be called once.

        Raises:
            EmptyGenerationError: there are no documents.
        """
        if not self._rows:
            raise EmptyGenerationError("the refresh has no documents, so there is nothing to publish")
        with reporting_full_disk(self._path.parent, 0):
            self._spool.close()
        ids = self._spooled_ids()
        seed, keys, last = _last_of_each_id(ids, np.asarray(self._positions), self._seed)
        duplicates = len(self._rows) - len(last)
        # Each column is let go of once it is taken from: together they would be the peak of a refresh's memory.
        self._positions, self._lengths = array("q"), array("H")
        last = last[np.argsort(np.asarray(self._rows)[last], kind="stable")]
        keys = keys[last]
        rows, self._rows = np.asarray(self._rows)[last], array("I")
        times, self._times = np.asarray(self._times)[last], array("q")
        return Resolved(
            seed=seed,
            keys=keys,
            rows=rows,
            times=times,
            ids=ids.subset(last),
            deleted=np.empty(0, U64),
            documents=len(rows),
            duplicates=duplicates,
        )

    def resolve_delta(self, current: Stack, digests: npt.NDArray[np.void]) -> Resolved:
        """Like `resolve`, under the seed that there is: see `store.changes`. To be called once.

        Args:
            current: the generation that the delta follows.
            digests: of the building's rows.
        """
        with reporting_full_disk(self._path.parent, 0):
            self._spool.close()
        ids = self._spooled_ids() if self._rows else Ids(numbers=np.empty(0, U64))
        keys, rows, times = _keys(ids, self._seed), np.asarray(self._rows), np.asarray(self._times)
        changes = resolve(
            current,
            ids=ids,
            keys_n=keys,
            rows_n=rows,
            digests_n=lambda places: digests[rows[places]],
            times_n=times,
            positions_n=np.asarray(self._positions),
        )
        stored = changes.stored[np.argsort(rows[changes.stored], kind="stable")]
        return Resolved(
            seed=self._seed,
            keys=keys[stored],
            rows=rows[stored],
            times=times[stored],
            ids=ids.subset(stored),
            deleted=keys[changes.deleted],
            documents=changes.documents,
            duplicates=changes.duplicates,
            absent=changes.absent,
            clashes=changes.clashes,
        )

    def _spooled_ids(self) -> Ids:
        if self._id_type == "integer":
            return Ids(numbers=np.memmap(self._path, U64, "r"))
        offsets = np.zeros(len(self._lengths) + 1, dtype=U64)
        np.cumsum(self._lengths, dtype=U64, out=offsets[1:])
        return Ids(offsets=offsets, text=np.memmap(self._path, np.uint8, "r"))

    def close(self) -> None:
        """Closes the spool."""
        abandon(self._spool)


def _numbers(ids: Sequence[str] | Sequence[int]) -> bytes:
    """Integer ids as u64."""
    try:
        # By way of an array: numpy would turn text and fractions into integers.
        return np.array(array("Q", cast("Sequence[int]", ids)), dtype=U64).tobytes()
    except (TypeError, OverflowError) as error:
        raise IdTypeError(f"this store's ids are integers from 0 to 2^64 - 1: {error}") from error


def _encoded(ids: Sequence[str] | Sequence[int]) -> list[bytes]:
    """String ids as UTF-8."""
    try:
        encoded = [*map(str.encode, cast("Sequence[str]", ids))]
    except (TypeError, UnicodeEncodeError) as error:
        raise IdTypeError(f"this store's ids are strings of UTF-8: {error}") from error
    if not all(1 <= len(id_) <= MAX_ID_BYTES for id_ in encoded):
        raise IdTypeError(f"an id is empty or over {MAX_ID_BYTES} bytes of UTF-8")
    return encoded


def _last_of_each_id(
    ids: Ids, positions_n: npt.NDArray[np.int64], first_seed: int
) -> tuple[int, Keys, npt.NDArray[np.int64]]:
    """A seed under which no two ids share a key, the keys [n], and the places of those that no later one replaces."""
    for seed in range(first_seed, first_seed + _MAX_SEEDS):
        keys = _keys(ids, seed)
        order = np.lexsort((positions_n, keys))
        ordered = keys[order]
        repeated = np.flatnonzero(ordered[:-1] == ordered[1:])
        del ordered
        blocks = (repeated[start : start + _CHUNK] for start in range(0, len(repeated), _CHUNK))
        if all(ids.take(order[block]) == ids.take(order[block + 1]) for block in blocks):
            return seed, keys, np.delete(order, repeated)  # what is followed by its equal was replaced by it
    raise StoreError(f"two ids shared a key under each of {_MAX_SEEDS} seeds, which chance does not explain")


def _keys(ids: Ids, seed: int) -> Keys:
    if ids.numbers is not None:
        return integer_keys(ids.numbers, seed)
    assert ids.offsets is not None
    assert ids.text is not None
    keys = np.empty(len(ids.offsets) - 1, dtype=U64)
    for start in range(0, len(keys), _CHUNK):
        offsets = ids.offsets[start : start + _CHUNK + 1].tolist()
        text = ids.text[offsets[0] : offsets[-1]].tobytes()
        cuts = [offset - offsets[0] for offset in offsets]
        pieces = [text[cut:end] for cut, end in pairwise(cuts)]
        keys[start : start + len(pieces)] = bytes_keys(pieces, seed)
    return keys
