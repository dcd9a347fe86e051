"""Whether a store holds what was written: every byte by checksum, and the arrays by each other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from store.errors import CorruptError, GenerationNotFoundError, NoGenerationError, StoreError
from store.format import DATA, SEGMENTS
from store.keys import bytes_keys, integer_keys
from store.segment import Segment
from store.store import Store


def verify(store: Store, name: str | None = None) -> Iterator[tuple[str, StoreError | None]]:
    """Checks CURRENT and every generation, or one: each byte of each file by sha256, then that the arrays agree.

    Yields:
        What was checked, and what is wrong with it, if anything is. Nothing where nothing was published yet; nothing of
        a generation that is collected meanwhile, unless it is the one asked for.
    """
    sound: set[object] = set()  # what was verified already: generations share segments
    if name is not None:
        yield name, problem_of(partial(verify_generation, store, name, sound))
        return
    names = store.generations()
    problem = problem_of(lambda: store.manifest(store.current()))
    if not names and isinstance(problem, NoGenerationError):
        return
    yield "CURRENT", problem
    for generation in names:
        problem = problem_of(partial(verify_generation, store, generation, sound))
        if not isinstance(problem, GenerationNotFoundError):
            yield generation, problem


def problem_of(check: Callable[[], object]) -> StoreError | None:
    """What a check raises, if it raises."""
    try:
        check()
    except StoreError as error:
        return error
    return None


def verify_generation(store: Store, name: str, sound: set[object]) -> None:
    """Verifies one generation but for its segments that are in `sound`, to which the others are added.

    Raises:
        GenerationNotFoundError: it is not there, or is collected meanwhile.
        CorruptError: it is damaged.
        FormatError: a newer version wrote it.
    """
    manifest = store.manifest(name)
    # With all of these alike, the same arrays are read in the same way.
    reading = manifest.encoding, manifest.fixed_step, manifest.dimension, manifest.id_type, manifest.seed
    unknown = [entry for entry in manifest.segments if (entry, reading) not in sound]
    with noticing_collection(store, name):
        for entry in unknown:
            entry.file.check(store.path / SEGMENTS / entry.id / DATA, thorough=True)
        with contextlib.closing(store.open(name)) as generation:  # which counts the documents
            for segment in generation.stack.segments:
                if segment.entry in unknown:
                    _verify_index(segment, manifest.seed, store.path / SEGMENTS / segment.entry.id / DATA)
    sound.update((entry, reading) for entry in unknown)


@contextlib.contextmanager
def noticing_collection(store: Store, name: str) -> Iterator[None]:
    """Tells a generation that is collected while it is read from one that is damaged. Its manifest goes first."""
    try:
        yield
    except CorruptError as error:
        if name in store.generations():
            raise
        raise GenerationNotFoundError(
            f"{store.path} no longer has generation {name}: it was collected meanwhile; take a newer one"
        ) from error


def _verify_index(segment: Segment, seed: int, file: Path) -> None:
    """Every row's id must be found by the index at that row: what a writer's fault, not a disk's, would break."""
    block = 1 << 16
    for start in range(0, segment.entry.documents, block):
        rows = np.arange(start, min(start + block, segment.entry.documents))
        if segment.ids.numbers is not None:
            keys = integer_keys(segment.ids.numbers[rows], seed)
        else:
            keys = bytes_keys([str(id_).encode() for id_ in segment.ids.take(rows)], seed)
        found_rows, found = segment.index.find(keys)
        if not found.all() or not np.array_equal(found_rows, rows):
            raise CorruptError(f"{file}: its index and its documents disagree; refresh the store")
