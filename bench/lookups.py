"""Ids → embeddings by the store's own API, against numpy's `take` in memory and one LMDB `get` a document.

Shapes: N ids asked for, n documents, D dimension.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import lmdb
import numpy as np

from bench.material import Material, number_ids
from store.store import Store

CANDIDATES = 100

_CALLS = 300  # of each in a round


def measure(material: Material, documents: int, rounds: int) -> Mapping[str, Sequence[float]]:
    """Microseconds of 100 ids, the median of each round: `lookup`, `take` and `get`.

    Args:
        material: makes the store: 128 dimensions as uint8 would be decoded, so rows are float32 here, as `take`'s are.
        documents: of the store.
        rounds: how many, after one that warms up.
    """
    bundle = material.triletter(3)
    path, (name,) = material.random_store(f"lookup-{documents}", bundle, documents)
    generation = Store(path).open(name)
    generation.warm()
    rows_nD = generation.read(generation.locate(number_ids(np.arange(documents))))
    draw = np.random.default_rng(2)
    with lmdb.open(str(_one_value_each(material.folder / "gets", rows_nD)), readonly=True, lock=False) as environment:

        def lookup(ids: list[str], _rows_N: object) -> None:
            generation.read(generation.locate(ids))

        def take(_ids: list[str], rows_N: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
            rows_nD.take(rows_N, axis=0)

        def get(ids: list[str], _rows_N: object) -> None:
            with environment.begin(buffers=True) as transaction:
                np.stack([np.frombuffer(transaction.get(id_.encode(), b""), np.float32) for id_ in ids])

        ways: dict[str, Callable[..., None]] = {"lookup": lookup, "take": take, "get": get}
        medians: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(-1, rounds):
            for name in random.Random(number).sample([*ways], len(ways)):
                times = []
                for rows_N in draw.integers(0, documents, (_CALLS, CANDIDATES)):
                    ids = number_ids(rows_N)
                    begun = time.perf_counter()
                    ways[name](ids, rows_N)
                    times.append(time.perf_counter() - begun)
                if number >= 0:
                    medians[name].append(1e6 * float(np.median(times)))
    generation.close()
    return medians


def _one_value_each(path: Path, rows_nD: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Path:
    """An LMDB environment of id → row."""
    ids = number_ids(np.arange(len(rows_nD)))
    with (
        lmdb.open(str(path), map_size=1 << 36, sync=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        for number in sorted(range(len(ids)), key=ids.__getitem__):
            transaction.put(ids[number].encode(), rows_nD[number].tobytes(), append=True)
    return path
