"""Documents of random words, and refreshes of them through the real pipeline."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np

from encoder_server.documents import Deletion, Document, Rejection
from encoder_server.progress import Progress
from encoder_server.refresh import Refresh
from store.store import Store
from twinbert.runtime import Runtime

WORDS = "red blue green small large shoe boot table chair lamp paper glass metal wood for with and without".split()
WINDOW = 64


def texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 12 words, no two alike."""
    chance = random.Random(seed)
    return [f"{' '.join(chance.choices(WORDS, k=chance.randint(1, 12)))} {seed} {number}" for number in range(count)]


def corpus(count: int, seed: int = 0) -> list[Document]:
    return [Document(f"d{number}", text, number) for number, text in enumerate(texts(count, seed))]


def refreshed(
    store: Store, runtime: Runtime, documents: Iterable[Document | Deletion | Rejection], **options: Any
) -> tuple[str, Progress]:
    with Refresh(store, runtime, **options) as refresh:
        refresh.add(documents)
        return refresh.commit(), refresh.progress


def stored(store: Store, keys: Any) -> Any:
    """Embeddings of the current generation, which has all the keys."""
    generation = store.open(store.current())
    try:
        located = generation.locate(keys)
        assert located.found.all()
        return generation.read(located).copy()
    finally:
        generation.close()


def count(store: Store) -> int:
    return store.manifest(store.current()).documents


def assert_stored(store: Store, runtime: Runtime, documents: dict[str, str], atol: float = 1e-5) -> None:
    """The current generation is these documents, each with the embedding of its own text."""
    assert count(store) == len(documents)
    exact = runtime.encode(list(documents.values()), "document")
    np.testing.assert_allclose(stored(store, list(documents)), exact, rtol=0, atol=atol)
