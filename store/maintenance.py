"""What an operator does to a store: list, verify, roll back, collect, copy. Each says what it did."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np

from store.errors import CorruptError, GenerationNotFoundError, NoGenerationError, StoreError
from store.files import FileEntry, locked, reporting_full_disk, sync_directory, sync_file
from store.format import BUILDING, DATA, GENERATIONS, SEGMENTS
from store.keys import bytes_keys, integer_keys
from store.manifest import Manifest, generation_number, write_current, write_manifest
from store.segment import Segment
from store.store import Store

# An interrupted build is worth keeping for the run that will resume it; after this long nobody will.
BUILD_DAYS = 7

# Generations with all of these alike read the same arrays in the same way.
_DESCRIBED = attrgetter("segments", "encoding", "fixed_step", "dimension", "id_type", "seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A generation in a list: its manifest, or why it cannot be read."""

    name: str
    current: bool
    manifest: Manifest | None
    size: int
    problem: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """What a collection removed: names, and bytes that became free."""

    generations: tuple[str, ...]
    segments: tuple[str, ...]
    builds: tuple[str, ...]
    size: int


def list_generations(store: Store) -> list[Listed]:
    """Every generation, oldest first; a damaged one is listed with its problem."""
    try:
        current: str | None = store.current()
    except (NoGenerationError, CorruptError):
        current = None
    listed = []
    for name in store.generations():
        manifest, problem = None, None
        try:
            manifest = store.manifest(name)
        except StoreError as error:
            problem = str(error)
        size = sum(segment.file.size for segment in manifest.segments) if manifest else 0
        listed.append(Listed(name=name, current=name == current, manifest=manifest, size=size, problem=problem))
    return listed


def verify(store: Store, name: str | None = None) -> Iterator[tuple[str, StoreError | None]]:
    """Checks CURRENT and every generation, or one: each byte of each file by sha256, then that the arrays agree.

    Yields:
        What was checked, and what is wrong with it, if anything is.
    """
    if name is None:
        yield "CURRENT", _problem(lambda: store.manifest(store.current()))
    sound: set[object] = set()  # what was verified already: generations share segments
    for generation in store.generations() if name is None else [name]:
        yield generation, _problem(partial(_verify_generation, store, generation, sound))


def _problem(check: Callable[[], object]) -> StoreError | None:
    try:
        check()
    except StoreError as error:
        return error
    return None


def _verify_generation(store: Store, name: str, sound: set[object]) -> None:
    manifest = store.manifest(name)
    described = _DESCRIBED(manifest)
    if described in sound:
        return
    for entry in manifest.segments:
        file = store.path / SEGMENTS / entry.id / DATA
        entry.file.check(file, thorough=True)
    with contextlib.closing(store.open(name)) as generation:
        _verify_index(generation.segment, manifest, file)
    sound.add(described)


def _verify_index(segment: Segment, manifest: Manifest, file: Path) -> None:
    """Every row's id must be found by the index at that row: what a writer's fault, not a disk's, would break."""
    block = 1 << 16
    for start in range(0, manifest.documents, block):
        rows = np.arange(start, min(start + block, manifest.documents))
        if segment.ids.numbers is not None:
            keys = integer_keys(segment.ids.numbers[rows], manifest.seed)
        else:
            keys = bytes_keys([str(id_).encode() for id_ in segment.ids.take(rows)], manifest.seed)
        found_rows, found = segment.index.find(keys)
        if not found.all() or not np.array_equal(found_rows, rows):
            raise CorruptError(f"{file}: its index and its documents disagree; refresh the store")


def rollback(store: Store, to: str | None = None) -> tuple[str, str]:
    """Makes an earlier generation the current one, after verifying it.

    Args:
        store: the store.
        to: its name; None: the parent of the current one, or the newest that verifies if CURRENT is damaged or missing.

    Returns:
        The names of the generation before, or what was wrong with CURRENT, and of the one now.

    Raises:
        GenerationNotFoundError: there is no such generation.
        CorruptError: it does not verify; CURRENT is unchanged.
        StoreFullError: no space left; CURRENT is unchanged.
        StoreLockedError: a refresh is running.
    """
    with locked(store.path, "a rollback"):
        try:
            before = store.current()
        except (CorruptError, NoGenerationError):
            before = "damaged or missing"
        target = to or _rollback_target(store)
        _verify_generation(store, target, set())
        with reporting_full_disk(store.path):
            write_current(store.path, target)
    return before, target


def _rollback_target(store: Store) -> str:
    try:
        current = store.current()
        parent = store.manifest(current).parent
    except (CorruptError, GenerationNotFoundError, NoGenerationError):
        sound = (name for name, problem in verify(store) if name != "CURRENT" and problem is None)
        newest = max(sound, key=generation_number, default=None)
        if newest is None:
            raise CorruptError(f"{store.path} has no generation that verifies; refresh the store") from None
        return newest
    if parent is None:
        raise GenerationNotFoundError(f"{current} is the first generation of {store.path}: there is none before it")
    return parent


def gc(store: Store, *, keep: int, dry_run: bool = False) -> Collected:
    """Removes what no kept generation needs: older generations, segments that nobody names, abandoned builds.

    The newest `keep` generations stay, and the current one with its parent, so that a rollback is always possible.
    Servers that have a removed segment open go on reading it: the space becomes free when they let go.

    Args:
        store: the store.
        keep: generations to keep, at least 1.
        dry_run: only say what would go.

    Raises:
        StoreLockedError: a refresh is running.
    """
    with locked(store.path, "a collection"):
        names = store.generations()
        current = store.current()
        kept = {current, *names[-max(1, keep) :]}
        if (parent := store.manifest(current).parent) in names:
            kept.add(str(parent))
        # A kept manifest that cannot be read stops the collection here: what it names is unknown.
        needed = {segment.id for name in kept for segment in store.manifest(name).segments}
        manifests = [store.path / GENERATIONS / f"{name}.json" for name in names if name not in kept]
        segments = [path for path in sorted((store.path / SEGMENTS).iterdir()) if path.name not in needed]
        horizon = time.time() - BUILD_DAYS * 86400
        builds = [path for path in sorted((store.path / BUILDING).iterdir()) if _touched(path) < horizon]
        temporary = [*store.path.glob(".*.tmp"), *(store.path / GENERATIONS).glob(".*.tmp")]
        collected = Collected(
            generations=tuple(path.stem for path in manifests),
            segments=tuple(path.name for path in segments),
            builds=tuple(path.name for path in builds),
            size=sum(_size(path) for path in (*manifests, *segments, *builds, *temporary)),
        )
        if not dry_run:
            # Manifests first: a crash in between leaves segments that nobody names, for the next collection.
            for path in (*manifests, *temporary):
                path.unlink()
            sync_directory(store.path / GENERATIONS)
            for path in (*segments, *builds):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
    return collected


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
        StoreFullError: no space left.
        StoreLockedError: somebody else changes the destination.
    """
    name = name or source.current()
    manifest = source.manifest(name)
    destination.create()
    copied = 0
    with locked(destination.path, f"a copy of {name}"):
        for entry in manifest.segments:
            target = destination.path / SEGMENTS / entry.id
            if _problem(partial(entry.file.check, target / DATA, thorough=True)) is None:
                continue
            draft = target.with_name(f".{entry.id}.copy")
            shutil.rmtree(draft, ignore_errors=True)
            try:
                with reporting_full_disk(destination.path, entry.file.size):
                    draft.mkdir()
                    _copy_file(source.path / SEGMENTS / entry.id / DATA, draft / DATA, entry.file)
                shutil.rmtree(target, ignore_errors=True)
                draft.rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
            sync_directory(target)
            sync_directory(target.parent)
            copied += entry.file.size
        with reporting_full_disk(destination.path):
            write_manifest(destination.path, manifest)
            write_current(destination.path, name)
    return name, copied


def _copy_file(original: Path, target: Path, entry: FileEntry) -> None:
    try:
        shutil.copyfile(original, target)
        sync_file(target)
        entry.check(target, thorough=True)
    except (CorruptError, FileNotFoundError):
        entry.check(original, thorough=True)  # names the original, if it is at fault
        raise


def _touched(path: Path) -> float:
    """When anything in a folder last changed, in seconds since the epoch."""
    return max((entry.stat().st_mtime for entry in (path, *path.rglob("*"))), default=0.0)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(entry.stat().st_size for entry in path.rglob("*"))
