"""A store that is worth compacting, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from store_cases import Deletion, Document, assert_holds, delta, documents, refresh

from store.store import Store
from store.verification import verify

BASE = documents(20)
CHANGES: list[list[Document | Deletion]] = [
    [Document("document-3", "second", 5), Document("new", "first", 6)],
    [Document("document-3", "third", 7), Deletion("document-4"), Deletion("new")],
    [Document("document-4", "back", 8), Deletion("document-5"), Document("newest", "only", 9)],
]


def three_deltas(path: Path) -> Store:
    """A store of twenty documents and three deltas."""
    made = Store(path)
    refresh(made, BASE)
    for changes in CHANGES:
        delta(made, changes)
    return made


def after(count: int) -> dict[Any, Document]:
    """The documents after so many of the deltas."""
    corpus = {one.id: one for one in BASE}
    for one in (one for changes in CHANGES[:count] for one in changes):
        if isinstance(one, Document):
            corpus[one.id] = one
        else:
            corpus.pop(one.id, None)
    return corpus


def is_now(store: Store, corpus: dict[Any, Document]) -> bool:
    """Whether the current generation is exactly these documents, and all generations are sound."""
    generation = store.open(store.current())
    try:
        assert_holds(generation, corpus, ["nowhere", *(one.id for one in BASE if one.id not in corpus)])
    finally:
        generation.close()
    return all(problem is None for _, problem in verify(store))


def sizes(store: Store) -> list[tuple[int, int]]:
    """Rows and tombstones of the current generation's segments, newest first."""
    return [(one.documents, one.deleted) for one in store.manifest(store.current()).segments]
