"""Misses that heal: of a document source only what scorers were asked for and did not find."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from encoder_server.documents import Deletion, Document, Rejection
from store.store import Store
from twinbert.recorded import read_missed


class Missing:
    """The documents of a source that a scorer recorded as missing, with what the source says of deleting them.

    What was recorded as deleted is not among them: an older source must not bring it back.

    Args:
        path: the recording.
        id_type: of the store.
        documents: the source.

    Attributes:
        wanted: how many ids these are.
        found: how many documents of the source are among them, so far.

    Raises:
        UsageError: there is no such recording, or it cannot be read.
    """

    def __init__(self, path: Path, id_type: str, documents: Iterable[Document | Deletion | Rejection]) -> None:
        self._ids = read_missed(path, id_type)
        self._documents = documents
        self.wanted, self.found = len(self._ids), 0

    def leave_deleted(self, store: Store) -> None:
        """Leaves out what a delta has deleted since it was recorded. The store must be locked, lest one does meanwhile.

        Raises:
            StoreError: the current generation cannot be read.
        """
        ids: Any = list(self._ids)
        with contextlib.closing(store.open(store.current())) as generation:
            integers = generation.manifest.id_type == "integer"
            deleted_N = generation.deleted(np.array(ids, dtype=np.uint64) if integers else ids)
        self._ids.difference_update(compress(ids, deleted_N.tolist()))
        self.wanted = len(self._ids)

    def __iter__(self) -> Iterator[Document | Deletion | Rejection]:
        names = set(map(str, self._ids))  # as rejections have them
        for one in self._documents:
            if isinstance(one, Rejection):
                if one.document_id in names:
                    yield one
            elif one.key in self._ids:
                self.found += isinstance(one, Document)
                yield one
