"""What a delta changes in the generation that it follows.

Shapes: n changes of the delta, in the order in which they were gathered; N of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from store.format import TOMBSTONE
from store.keys import Keys
from store.segment import Ids
from store.stack import Stack

Places = npt.NDArray[np.int64]

_CHUNK = 1 << 10  # ids at a time: each becomes an object


@dataclass(frozen=True, slots=True)
class Clash:
    """A document that cannot be stored: its key is that of `other`, an id that is there, or came first.

    A full refresh takes another seed, under which they differ.
    """

    position: int
    id: str | int
    other: str | int


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Which changes of a delta count.

    Attributes:
        stored: places of the documents to store.
        deleted: places of the deletions of documents that are there.
        documents: how many documents the next generation has.
        duplicates: changes whose id came again later.
        absent: deletions of ids that are not there.
        clashes: documents that are left out.
    """

    stored: Places
    deleted: Places
    documents: int
    duplicates: int
    absent: int
    clashes: tuple[Clash, ...]


def resolve(
    current: Stack,
    *,
    ids: Ids,
    keys_n: Keys,
    rows_n: npt.NDArray[np.uint32],
    digests_n: Callable[[Places], npt.NDArray[np.void]],
    times_n: npt.NDArray[np.int64],
    positions_n: npt.NDArray[np.int64],
) -> Changes:
    """Of each id the last change counts, unless it changes nothing: a deletion of what is not there, or a document that
    is there with the same text and time.

    Args:
        current: the generation that the delta follows.
        ids: of what changes.
        keys_n: of `ids`, under the generation's seed.
        rows_n: TOMBSTONE for a deletion, anything else for a document.
        digests_n: gives the digests of the documents at some places.
        times_n: source times of the documents.
        positions_n: which change is later.
    """
    rows_F, found_n = current.find(keys_n)
    stored_n = np.zeros(len(keys_n), np.int64)
    stored_n[found_n] = rows_F
    order = np.lexsort((positions_n, keys_n))
    first_n = _first_of_each_key(keys_n, order)
    deletes_n = rows_n == TOMBSTONE

    # A key is that of the stored document, else that of the first change which has it.
    others = np.flatnonzero(~found_n & (first_n != np.arange(len(first_n))))
    clashing = [
        *_unequal(np.flatnonzero(found_n), ids.take, lambda places: current.ids(stored_n[places])),
        *_unequal(others, ids.take, lambda places: ids.take(first_n[places])),
    ]
    clashes_n = np.zeros(len(keys_n), np.bool_)
    clashes_n[[place for place, _, _ in clashing]] = True

    order = order[~clashes_n[order]]
    keys = keys_n[order]
    last = np.sort(order[np.append(keys[1:] != keys[:-1], True)[: len(order)]])
    deletions, documents = last[deletes_n[last]], last[~deletes_n[last]]
    there = documents[found_n[documents]]
    rows = stored_n[there]
    same = (times_n[there] == current.times(rows)) & _equal(digests_n(there), current.digests(rows))
    deleted = deletions[found_n[deletions]]
    return Changes(
        stored=np.setdiff1d(documents, there[same], assume_unique=True),
        deleted=deleted,
        documents=current.documents + len(documents) - len(there) - len(deleted),
        duplicates=len(order) - len(last),
        absent=len(deletions) - len(deleted) + int((clashes_n & deletes_n).sum()),
        clashes=tuple(
            Clash(int(positions_n[place]), id_, other) for place, id_, other in clashing if not deletes_n[place]
        ),
    )


def _first_of_each_key(keys_n: Keys, order: Places) -> Places:
    """For each change the place of the first one that has its key."""
    ordered = keys_n[order]
    begins = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    first_n = np.empty(len(order), np.int64)
    first_n[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first_n


def _unequal(
    places: Places, ids: Callable[[Places], list[Any]], others: Callable[[Places], list[Any]]
) -> Iterator[tuple[int, Any, Any]]:
    """Where an id is not the other that it should be: place, id and other."""
    for start in range(0, len(places), _CHUNK):
        chunk = places[start : start + _CHUNK]
        for place, id_, other in zip(chunk.tolist(), ids(chunk), others(chunk), strict=True):
            if id_ != other:
                yield place, id_, other


def _equal(digests_N: npt.NDArray[np.void], others_N: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    halves_N2, others_N2 = (np.ascontiguousarray(one).view("<u8").reshape(-1, 2) for one in (digests_N, others_N))
    equal_N: npt.NDArray[np.bool_] = (halves_N2 == others_N2).all(axis=1)
    return equal_N
