"""A model that changes nothing stored: the current generation is published again, for another bundle to serve."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from store.files import locked, reporting_full_disk
from store.lineage import sealing_ms
from store.manifest import Manifest, next_number
from store.publication import publish
from store.store import Store
from store.writer import remove_unpublished


def adopt(store: Store, *, model: str, software: str, judge: Callable[[Manifest], Mapping[str, Any]]) -> Manifest:
    """Publishes a new manifest over the segments of the current generation, which stay as they are.

    Args:
        store: the store.
        model: the one that is meant to serve it from now on; its fingerprint must be the generation's.
        software: name and version of the program, for the manifest.
        judge: is shown the current generation while the store is locked, raises where the model must not serve it, and
            gives the `quality` of the new manifest.

    Returns:
        The manifest of the generation that is current now.

    Raises:
        NoGenerationError: there is nothing to adopt.
        CorruptError: the current generation cannot be read.
        SupersededError: somebody rolled back meanwhile; CURRENT is unchanged.
        StoreFullError: no space left; CURRENT is unchanged.
        StoreLockedError: a refresh is running.
    """
    with locked(store.path, f"an adoption of model {model[:12]}"):
        current = store.manifest(store.current())
        quality = judge(current)
        adopted = dataclasses.replace(
            current,
            number=next_number(store.path),
            parent=current.name,
            model=model,
            created_ms=sealing_ms(store.path, current.name),
            quality=quality,
            writer=software,
        )
        with contextlib.ExitStack() as undo, reporting_full_disk(store.path):
            undo.callback(remove_unpublished, store.path, adopted.name)
            publish(store.path, adopted, began=current.name)
            undo.pop_all()
    return adopted
