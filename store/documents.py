"""The documents of a refresh, gathered as columns: about 30 bytes of memory a document, ids on disk.

Shapes: N documents of a batch, n documents of the whole refresh.
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

from store.errors import EmptyGenerationError, IdTypeError, StoreError
from store.files import abandon, reporting_full_disk
from store.format import I64, MAX_ID_BYTES, U64
from store.keys import Keys, bytes_keys, integer_keys
from store.manifest import IdType
from store.segment import Ids

_CHUNK = 1 << 10  # ids at a time: of the longest ids, half a megabyte of text and 12 of places
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
    """What is left after of every id the last document won, in the order of `rows`."""

    seed: int
    keys: Keys
    rows: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    ids: Ids
    duplicates: int


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
        self._columns: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in ("rows", "times", "positions", "ids")}

    def add(self, batch: Batch, rows_N: npt.NDArray[np.int64]) -> None:
        """Adds documents whose embeddings are the building's rows `rows_N`.

        Raises:
            IdTypeError: ids are not of the store's type.
        """
        if self._id_type == "integer":
            try:
                # By way of an array: numpy would turn text and fractions into integers.
                ids = np.array(array("Q", cast("Sequence[int]", batch.ids)), dtype=U64)
            except (TypeError, OverflowError) as error:
                raise IdTypeError(f"this store's ids are integers from 0 to 2^64 - 1: {error}") from error
        else:
            try:
                encoded = [id_.encode() for id_ in batch.ids]  # type: ignore[union-attr]
            except (AttributeError, UnicodeEncodeError) as error:
                raise IdTypeError(f"this store's ids are strings of UTF-8: {error}") from error
            ids = np.fromiter(map(len, encoded), dtype=U64, count=len(encoded))
            if len(ids) and not 1 <= int(ids.min()) <= int(ids.max()) <= MAX_ID_BYTES:
                raise IdTypeError(f"an id is empty or over {MAX_ID_BYTES} bytes of UTF-8")
            with reporting_full_disk(self._path.parent, int(ids.sum())):
                self._spool.write(b"".join(encoded))
        for name, column in (("rows", rows_N), ("times", batch.times), ("positions", batch.positions), ("ids", ids)):
            self._columns[name].append(column)

    def resolve(self) -> Resolved:
        """Keeps the last document of each id, and finds a seed under which no two ids share a key.

        Raises:
            EmptyGenerationError: there are no documents.
        """
        with reporting_full_disk(self._path.parent, 0):
            self._spool.flush()
        if not any(map(len, self._columns["rows"])):
            raise EmptyGenerationError("the refresh has no documents, so there is nothing to publish")
        columns = {name: np.concatenate(chunks) for name, chunks in self._columns.items()}
        ids = _spooled_ids(self._path, columns["ids"]) if self._id_type == "string" else Ids(numbers=columns["ids"])
        for seed in range(self._seed, self._seed + _MAX_SEEDS):
            keys = _keys(ids, seed)
            order = np.lexsort((columns["positions"], keys))
            repeated = np.flatnonzero(keys[order][:-1] == keys[order][1:])
            if ids.take(order[repeated]) == ids.take(order[repeated + 1]):
                break
        else:
            raise StoreError(f"two ids shared a key under each of {_MAX_SEEDS} seeds, which chance does not explain")
        last = np.delete(order, repeated)  # in order of position, the last of each key is not followed by its equal
        last = last[np.argsort(columns["rows"][last], kind="stable")]
        return Resolved(
            seed=seed,
            keys=keys[last],
            rows=columns["rows"][last],
            times=columns["times"][last].astype(I64),
            ids=_taken(ids, last),
            duplicates=len(repeated),
        )

    def close(self) -> None:
        """Closes the spool."""
        abandon(self._spool)


def _spooled_ids(path: Path, lengths: npt.NDArray[np.uint64]) -> Ids:
    offsets = np.zeros(len(lengths) + 1, dtype=U64)
    np.cumsum(lengths, out=offsets[1:])
    return Ids(offsets=offsets, text=np.memmap(path, np.uint8, "r"))


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


def _taken(ids: Ids, order: npt.NDArray[np.int64]) -> Ids:
    """The ids in another order."""
    if ids.numbers is not None:
        return Ids(numbers=ids.numbers[order])
    assert ids.offsets is not None
    assert ids.text is not None
    starts, lengths = ids.offsets[:-1][order], np.diff(ids.offsets)[order].astype(np.int64)
    offsets = np.zeros(len(order) + 1, dtype=U64)
    np.cumsum(lengths, out=offsets[1:])
    text = np.empty(int(offsets[-1]), dtype=np.uint8)
    for first in range(0, len(order), _CHUNK):
        last = min(first + _CHUNK, len(order))
        begin, end = int(offsets[first]), int(offsets[last])
        # Byte k of the output comes from its id's start in the spool plus its place within the id.
        shift = np.repeat(starts[first:last] - offsets[first:last], lengths[first:last])
        text[begin:end] = ids.text[shift + np.arange(begin, end, dtype=U64)]
    return Ids(offsets=offsets, text=text)
