"""Which generations came before another: by descent, and by when they were sealed.

Numbers do not say it: those of a store that was built again elsewhere begin at 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from store.errors import StoreError
from store.manifest import Manifest, generation_names, generation_number, read_manifest


def is_earlier(one: Manifest, other: Manifest) -> bool:
    """Whether a generation was sealed before another. A compaction keeps the time, and has the higher number."""
    return (one.created_ms, one.number) < (other.created_ms, other.number)


def lineage(store: Path, manifest: Manifest) -> Iterator[Manifest]:
    """A generation and those that it descends from, the latest first, as far as their manifests can be read."""
    yield manifest
    while manifest.parent is not None:
        try:
            manifest = read_manifest(store, manifest.parent)
        except StoreError:
            return
        yield manifest


def predecessors(store: Path, name: str) -> Iterator[str]:
    """What may stand in for a generation, the best first: its parent, then the others that were sealed before it, the
    latest first. Where its manifest cannot be read, those with a lower number.
    """
    others = [other for other in reversed(generation_names(store)) if other != name]
    try:
        manifest = read_manifest(store, name)
    except StoreError:
        yield from (other for other in others if generation_number(other) < generation_number(name))
        return
    if manifest.parent in others:
        others.remove(manifest.parent)
        yield manifest.parent
    # Read only now: of deltas there may be thousands.
    earlier = []
    for other in others:
        with contextlib.suppress(StoreError):
            if is_earlier(found := read_manifest(store, other), manifest):
                earlier.append((found.created_ms, found.number, other))
    yield from (other for _, _, other in sorted(earlier, reverse=True))
