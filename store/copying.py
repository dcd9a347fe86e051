"""How a generation reaches another store: segments, manifest, then CURRENT, each verified."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from store.errors import CorruptError
from store.files import FileEntry, locked, reporting_full_disk, sync_directory, sync_file
from store.format import DATA, SEGMENTS
from store.manifest import SegmentEntry
from store.publication import publish, readable_current
from store.store import Store
from store.verification import noticing_collection, problem_of


def copy(source: Store, destination: Store, name: str | None = None) -> tuple[str, int]:
    """Copies a generation to another folder and makes it current there: segments, manifest, then CURRENT.

    What is there already and verifies is not copied again, so an interrupted copy goes on where it was.

    Args:
        source: where from.
        destination: where to; made if it is missing.
        name: the generation; None: the current one.

    Returns:
        The generation's name, and the bytes that were copied.

    Raises:
        CorruptError: the source, or the copy, does not verify; CURRENT of the destination is unchanged.
        GenerationNotFoundError: the source does not have it, or it is collected meanwhile.
        StoreFullError: no space left.
        StoreLockedError: somebody else changes the destination.
        SupersededError: somebody rolled the destination back meanwhile; its CURRENT is unchanged, the segments stay.
    """
    name = name or source.current()
    manifest = source.manifest(name)
    destination.create()
    copied = 0
    with locked(destination.path, f"a copy of {name}"):
        began = readable_current(destination.path)
        for entry in manifest.segments:
            with noticing_collection(source, name):
                copied += _copy_segment(
                    source.path / SEGMENTS / entry.id, destination.path / SEGMENTS / entry.id, entry
                )
        with reporting_full_disk(destination.path):
            publish(destination.path, manifest, began=began)
    return name, copied


def _copy_segment(original: Path, target: Path, entry: SegmentEntry) -> int:
    """Copies a segment's folder, unless it is there and verifies; returns the bytes that were copied."""
    if problem_of(partial(entry.file.check, target / DATA, thorough=True)) is None:
        return 0
    draft = target.with_name(f".{entry.id}.copy")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with reporting_full_disk(target.parent, entry.file.size):
            draft.mkdir()
        _copy_file(original / DATA, draft / DATA, entry.file)
        shutil.rmtree(target, ignore_errors=True)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    sync_directory(target)
    sync_directory(target.parent)
    return entry.file.size


def _copy_file(original: Path, target: Path, entry: FileEntry) -> None:
    try:
        with reporting_full_disk(target.parent, entry.size):
            shutil.copyfile(original, target)
            sync_file(target)
        entry.check(target, thorough=True)
    except (CorruptError, OSError):
        entry.check(original, thorough=True)  # names the original, if it is at fault
        raise
