"""Query embeddings that were computed before, bounded in bytes, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict

from prometheus_client import Gauge

from twinbert.runtime import Floats

# The digest of a query tower (`Runtime.query_digest`), and the exact text.
Key = tuple[str, str]

# What an entry takes beside its text and its numbers: three objects' headers and its place in the table.
_OVERHEAD = 310


class QueryCache:
    """Serves every query tower: the key names the one that encoded, so another's entry is never met.

    Args:
        limit: bytes; 0 keeps nothing.
        used: shows the bytes in use.
    """

    def __init__(self, limit: int, used: Gauge) -> None:
        self._limit, self._used, self._gauge = limit, 0, used
        self._entries: OrderedDict[Key, Floats] = OrderedDict()

    def get(self, key: Key) -> Floats | None:
        """The embedding [D] of a query, if it is here."""
        embedding_D = self._entries.get(key)
        if embedding_D is not None:
            self._entries.move_to_end(key)
        return embedding_D

    def put(self, key: Key, embedding_D: Floats) -> None:
        """Keeps an embedding, and gives up the oldest that no longer fit."""
        if key in self._entries or _size(key, embedding_D) > self._limit:
            return
        self._entries[key] = embedding_D
        self._used += _size(key, embedding_D)
        while self._used > self._limit:
            self._used -= _size(*self._entries.popitem(last=False))
        self._gauge.set(self._used)


def _size(key: Key, embedding_D: Floats) -> int:
    # 4 bytes a character is the most that Python takes; the digest is one object that all entries share.
    return 4 * len(key[1]) + embedding_D.nbytes + _OVERHEAD
