"""How CURRENT is replaced, by whoever publishes and by a rollback: one at a time, and never unawares.

A writer holds LOCK for as long as it works, which may be hours, and a rollback must not wait for that. So each of them
takes SWITCH besides, for the moment in which it reads CURRENT, sees that it is what it began from, and replaces it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from store.errors import CorruptError, NoGenerationError, SupersededError
from store.files import locked
from store.format import SWITCH
from store.manifest import Manifest, read_current, write_current, write_manifest


def switching(store: Path, purpose: str) -> contextlib.AbstractContextManager[None]:
    """Holds SWITCH: while it is held CURRENT is not replaced, and no generation is removed.

    Raises:
        StoreNotFoundError: there is no store.
        StoreLockedError: somebody else holds it, and for longer than moments.
    """
    return locked(store, purpose, file=SWITCH, brief=True)


def readable_current(store: Path) -> str | None:
    """The name in CURRENT; None where it is missing or damaged."""
    try:
        return read_current(store)
    except (NoGenerationError, CorruptError):
        return None


def require_unchanged(store: Path, began: str | None) -> None:
    """Raises SupersededError where another generation has become current than the one that a writer began from.

    A CURRENT that cannot be read is no obstacle: whoever publishes mends it.
    """
    now = readable_current(store)
    if now not in (None, began):
        raise SupersededError(
            f"{store}: meanwhile {now} became current in place of {began or 'none'}, as by a rollback, and stays it: "
            "nothing was changed; run this again if it is still wanted, nothing is encoded twice"
        )


def publish(store: Path, manifest: Manifest, *, began: str | None) -> None:
    """Writes a generation's manifest and makes it the current one. Its segments must be durable, and LOCK held.

    Args:
        store: the store's folder.
        manifest: the generation's.
        began: the name that was in CURRENT when the work on it began; None: none that could be read.

    Raises:
        SupersededError: another generation has become current since; nothing was written.
        StoreLockedError: somebody holds SWITCH for longer than moments.
    """
    with switching(store, f"the publication of {manifest.name}"):
        require_unchanged(store, began)
        write_manifest(store, manifest)
        write_current(store, manifest.name)
