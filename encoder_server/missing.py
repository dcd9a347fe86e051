"""Misses that heal: of a document source only what scorers were asked for and did not find."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from encoder_server.documents import Deletion, Document, Rejection
from twinbert.recorded import read_missed


class Missing:
    """The documents of a source that a scorer recorded as missing, with what the source says of deleting them.

    What was missing because a delta had deleted it is not among them: an older source must not bring it back.

    Args:
        path: the recording.
        id_type: of the store.
        documents: the source.

    Attributes:
        wanted: how many ids were recorded.
        found: how many documents of the source are among them, so far.

    Raises:
        UsageError: there is no such recording, or it cannot be read.
    """

    def __init__(self, path: Path, id_type: str, documents: Iterable[Document | Deletion | Rejection]) -> None:
        self._ids = read_missed(path, id_type)
        self._names = set(map(str, self._ids))  # as rejections have them
        self._documents = documents
        self.wanted, self.found = len(self._ids), 0

    def __iter__(self) -> Iterator[Document | Deletion | Rejection]:
        for one in self._documents:
            if isinstance(one, Rejection):
                if one.document_id in self._names:
                    yield one
            elif one.key in self._ids:
                self.found += isinstance(one, Document)
                yield one
