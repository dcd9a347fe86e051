"""Consecutive documents of a refresh, so many that texts of like length meet and hardly a token is padding."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from encoder_server.documents import Deletion, Document
from store.documents import Batch
from store.writer import digests

_DOCUMENTS = 4096
_CHARACTERS = 16 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What a window comes to: of what comes more than once in it, only the last is looked at.

    Attributes:
        batch: the documents.
        texts: theirs.
        deleted: ids to delete.
        deleted_at: their places in the input, [N].
        skipped: how many came again.
    """

    batch: Batch
    texts: list[str]
    deleted: Any
    deleted_at: npt.NDArray[np.int64]
    skipped: int


class Window:
    """Gathers documents and deletions with their places in the input."""

    def __init__(self) -> None:
        self._changes: list[tuple[int, Document | Deletion]] = []
        self._characters = 0

    def __bool__(self) -> bool:
        return bool(self._changes)

    @property
    def full(self) -> bool:
        """Whether it is large enough."""
        return len(self._changes) >= _DOCUMENTS or self._characters >= _CHARACTERS

    def add(self, position: int, change: Document | Deletion) -> None:
        """Takes the next one."""
        self._changes.append((position, change))
        self._characters += len(change.text) if isinstance(change, Document) else 0

    def take(self) -> Changes:
        """What was gathered; the window is empty then."""
        changes, self._changes, self._characters = self._changes, [], 0
        last = {change.key: (position, change) for position, change in changes}.values()
        deletions = [(position, change.key) for position, change in last if isinstance(change, Deletion)]
        documents = [(position, change) for position, change in last if isinstance(change, Document)]
        keys: Any = [document.key for _, document in documents]
        texts = [document.text for _, document in documents]
        now_ms = time.time_ns() // 1_000_000
        times = [now_ms if document.time_ms is None else document.time_ms for _, document in documents]
        batch = Batch(
            ids=keys,
            digests=digests(texts),
            times=np.array(times, dtype=np.int64),
            positions=np.array([position for position, _ in documents], dtype=np.int64),
        )
        return Changes(
            batch=batch,
            texts=texts,
            deleted=[key for _, key in deletions],
            deleted_at=np.array([position for position, _ in deletions], dtype=np.int64),
            skipped=len(changes) - len(last),
        )
