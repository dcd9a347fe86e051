"""Which generations came before another: by descent, and by when they were sealed.

Numbers do not say it: those of a store that was built again elsewhere begin at 1.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from store.errors import StoreError
from store.manifest import Manifest, generation_names, generation_number, read_manifest


def is_earlier(one: Manifest, other: Manifest) -> bool:
    """Whether a generation was sealed before another. A compaction keeps the time, and has the higher number."""
    return (one.created_ms, one.number) < (other.created_ms, other.number)


def sealing_ms(store: Path, parent: str | None) -> int:
    """When a generation that is sealed now is said to be sealed, in ms since the epoch: after its parent, and after the
    one of the highest number, also where the clock of this host is behind that of another.
    """
    times = [time.time_ns() // 1_000_000]
    for name in {parent, *generation_names(store)[-1:]} - {None}:
        with contextlib.suppress(StoreError):
            times.append(read_manifest(store, str(name)).created_ms + 1)
    return max(times)


def lineage(store: Path, manifest: Manifest) -> Iterator[Manifest]:
    """A generation and those that it descends from, the latest first, as far as their manifests can be read."""
    yield manifest
    while manifest.parent is not None:
        try:
            manifest = read_manifest(store, manifest.parent)
        except StoreError:
            return
        yield manifest


def descends(store: Path, name: str, ancestor: str) -> bool:
    """Whether a generation is another, was compacted or made from it, as far as manifests can be read."""
    merged = None
    with contextlib.suppress(StoreError):
        known = read_manifest(store, ancestor)
        merged = known.created_ms, known.parent  # which a compaction keeps
    with contextlib.suppress(StoreError):
        found = lineage(store, read_manifest(store, name))
        return any(ancestor in (one.name, one.parent) or (one.created_ms, one.parent) == merged for one in found)
    return name == ancestor


def latest_first(store: Path) -> list[str]:
    """The generations of a store, the one that was sealed last first. One whose manifest cannot be read is where its
    number has it.
    """
    return _latest_first(store, generation_names(store))


def _latest_first(store: Path, names: list[str]) -> list[str]:
    sealed_ms, order = 0, []
    for name in names:
        with contextlib.suppress(StoreError):
            sealed_ms = read_manifest(store, name).created_ms
        order.append((sealed_ms, generation_number(name), name))
    return [name for *_, name in sorted(order, reverse=True)]


def predecessors(store: Path, name: str) -> Iterator[str]:
    """What may stand in for a generation, the best first: its parent, then the others that were sealed before it, the
    latest first. Where it has no manifest that can be read, its number says what came before.
    """
    names = generation_names(store)
    parent = None
    with contextlib.suppress(StoreError):
        parent = read_manifest(store, name).parent
    if parent in names:
        yield str(parent)
    # Sorted only now: of deltas there may be thousands.
    order = _latest_first(store, sorted({*names, name}, key=generation_number))
    yield from (other for other in order[order.index(name) + 1 :] if other != parent)
