"""Query embeddings that were computed before, bounded in bytes, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict

from prometheus_client import Gauge

from twinbert.runtime import Floats

# What an entry takes beside its text and its numbers: two objects' headers and its place in the table.
_OVERHEAD = 250


class QueryCache:
    """Belongs to one query tower, so an entry of another tower cannot be met; the key is the exact text.

    Args:
        limit: bytes; 0 keeps nothing.
        used: shows the bytes in use.
    """

    def __init__(self, limit: int, used: Gauge) -> None:
        self._limit, self._used, self._gauge = limit, 0, used
        self._entries: OrderedDict[str, Floats] = OrderedDict()

    def get(self, text: str) -> Floats | None:
        """The embedding [D] of a query, if it is here."""
        embedding_D = self._entries.get(text)
        if embedding_D is not None:
            self._entries.move_to_end(text)
        return embedding_D

    def put(self, text: str, embedding_D: Floats) -> None:
        """Keeps an embedding, and gives up the oldest that no longer fit."""
        if text in self._entries or _size(text, embedding_D) > self._limit:
            return
        self._entries[text] = embedding_D
        self._used += _size(text, embedding_D)
        while self._used > self._limit:
            self._used -= _size(*self._entries.popitem(last=False))
        self._gauge.set(self._used)


def _size(text: str, embedding_D: Floats) -> int:
    # 4 bytes a character is the most that Python takes.
    return 4 * len(text) + embedding_D.nbytes + _OVERHEAD
