"""The generation that a refresh follows: its encoding, its ids, and whether its rows can be reused."""

from __future__ import annotations

import contextlib

from store.errors import CorruptError, GenerationNotFoundError, NoGenerationError, StoreError, StoreNotFoundError
from store.lineage import latest_first
from store.manifest import Manifest
from store.store import Store
from store.writer import Writer


def current_manifest(store: Store) -> Manifest | None:
    """Manifest of the current generation; None where there is none that can be read.

    Raises:
        FormatError: a newer version wrote it.
    """
    try:
        return store.manifest(store.current())
    except (StoreNotFoundError, NoGenerationError, CorruptError, GenerationNotFoundError):
        return None


def readable_manifest(store: Store) -> Manifest | None:
    """Of the current generation; where that is damaged, of the one that was sealed last and can be read: it says what
    the store is as well.

    Raises:
        FormatError: a newer version wrote the current one.
    """
    found = current_manifest(store)
    for name in latest_first(store.path) if found is None else ():
        with contextlib.suppress(StoreError):
            return store.manifest(name)
    return found


def verify_ahead(store: Store) -> None:
    """So that the next refresh finds the current generation verified, or being so; what is wrong, it finds again."""
    with contextlib.suppress(StoreError, OSError):
        store.open(store.current()).close()


def notices(current: Manifest | None, writer: Writer, encoding: str, fingerprint: str) -> list[str]:
    """Why the writer of the next generation cannot reuse rows of the current one, in sentences; none where it can."""
    if writer.damage is not None:
        return [f"rows of the current generation are not reused, it is damaged: {writer.damage}"]
    if current is None:
        return []
    if current.fingerprint != fingerprint:
        difference = f"has the fingerprint {current.fingerprint}, the bundle {fingerprint}"
    elif current.encoding != encoding:
        difference = f"is stored as {current.encoding}, this one as {encoding}"
    else:
        return []
    return [f"every document is encoded again: generation {current.name} {difference}"]
