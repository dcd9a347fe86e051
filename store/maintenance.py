"""What an operator does to a store: list, roll back, pin, collect. Each says what it did."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from store.errors import (
    CorruptError,
    GenerationNotFoundError,
    NoGenerationError,
    StoreError,
    StoreLockedError,
    SupersededError,
)
from store.files import locked, reporting_full_disk, sync_directory
from store.format import BUILDING, COMPACTION, COMPACTION_DRAFT, GENERATIONS, PIN, SEGMENTS
from store.lineage import descends, latest_first, predecessors
from store.manifest import Manifest, write_current
from store.publication import readable_current, switching
from store.store import Store
from store.verification import problem_of, verify_generation

# An interrupted build is worth keeping for the run that will resume it; after this long nobody will.
BUILD_DAYS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A generation in a list: its manifest, or why it cannot be read. `size` is that of its segments, shared or not."""

    name: str
    current: bool
    pinned: bool
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
    """Every generation, oldest first; one that cannot be read is listed with its problem."""
    current = readable_current(store.path)
    listed, pinned = [], _pinned(store)
    for name in reversed(latest_first(store.path)):
        manifest, problem = None, None
        try:
            manifest = store.manifest(name)
        except GenerationNotFoundError:
            continue  # collected meanwhile
        except StoreError as error:
            problem = str(error)
        size = sum(segment.file.size for segment in manifest.segments) if manifest else 0
        listed.append(
            Listed(
                name=name,
                current=name == current,
                pinned=name in pinned,
                manifest=manifest,
                size=size,
                problem=problem,
            )
        )
    return listed


def rollback(store: Store, to: str | None = None) -> tuple[str, str]:
    """Makes an earlier generation the current one, after verifying it. It waits for nobody: a refresh that is running
    publishes nothing then.

    Args:
        store: the store.
        to: its name; None: the parent of the one that is current now, or if that does not verify, the one that was
            sealed last before it and does. Where nothing can be read in CURRENT, of all the one that was sealed last.

    Returns:
        The names of the generation before, or what was wrong with CURRENT, and of the one now.

    Raises:
        GenerationNotFoundError: there is no such generation, or it is collected meanwhile.
        CorruptError: it does not verify; CURRENT is unchanged.
        StoreFullError: no space left; CURRENT is unchanged.
        SupersededError: `to` is None, and what became current meanwhile was not made from what was; it stays.
        StoreLockedError: somebody replaces CURRENT, and for longer than moments.
    """
    seen = readable_current(store.path)
    if to is None:
        target = _rollback_target(store, seen)
    else:
        verify_generation(store, target := to, set())
    with switching(store.path, "a rollback"):
        before = readable_current(store.path)
        # Deltas may have been published on top of what is to be left, and are left with it.
        left = before in (None, seen, target) or (seen is not None and descends(store.path, str(before), seen))
        if to is None and not left:
            raise SupersededError(
                f"{store.path}: meanwhile {before} became current in place of {seen or 'one that cannot be read'} and "
                "was not made from it: nothing was changed; roll back again if that is still wanted"
            )
        store.manifest(target)
        with reporting_full_disk(store.path):
            write_current(store.path, target)
    return before or "damaged or missing", target


def _rollback_target(store: Store, current: str | None) -> str:
    """The first that verifies of those to go back to."""
    if current is not None:
        with contextlib.suppress(CorruptError, GenerationNotFoundError):
            store.manifest(current)  # of a newer version, it is left only for one that is named
    sound: set[object] = set()
    name = None
    for name in latest_first(store.path) if current is None else predecessors(store.path, current):
        if problem_of(partial(verify_generation, store, name, sound)) is None:
            return name
    if name is None and current is not None:
        raise GenerationNotFoundError(f"{store.path} has no generation before {current}; name the one to go to")
    raise CorruptError(f"{store.path} has no generation to go back to that verifies; refresh the store")


def pin(store: Store, name: str) -> None:
    """Keeps a generation from being collected.

    Raises:
        GenerationNotFoundError: there is no such generation.
        CorruptError: its manifest is damaged.
        StoreLockedError: somebody replaces CURRENT or collects, and for longer than moments.
        StoreFullError: no space left.
    """
    with switching(store.path, f"pinning {name}"):
        store.manifest(name)
        with reporting_full_disk(store.path):
            (store.path / GENERATIONS / f"{name}{PIN}").touch()
            sync_directory(store.path / GENERATIONS)


def unpin(store: Store, name: str) -> None:
    """Lets a generation be collected again.

    Raises:
        GenerationNotFoundError: it is not pinned.
        StoreLockedError: as for `pin`.
    """
    with switching(store.path, f"unpinning {name}"):
        pinned = _pinned(store)
        if name not in pinned:
            raise GenerationNotFoundError(
                f"{store.path} has no pinned generation {name!r}; pinned are: {', '.join(sorted(pinned)) or 'none'}"
            )
        (store.path / GENERATIONS / f"{name}{PIN}").unlink()
        sync_directory(store.path / GENERATIONS)


def _pinned(store: Store) -> set[str]:
    return {path.stem for path in (store.path / GENERATIONS).glob(f"*{PIN}")}


def gc(store: Store, *, keep: int, dry_run: bool = False) -> Collected:
    """Removes what no kept generation needs: older generations, segments that nobody names, abandoned builds.

    The `keep` generations that were sealed last stay, those that are pinned, and the current one with its parent, so
    that a rollback is always possible. Where there is no CURRENT, as until the first refresh has ended, all stay.
    Servers that have a removed segment open go on reading it: the space becomes free when they let go.

    Args:
        store: the store.
        keep: generations to keep, at least 1.
        dry_run: only say what would go.

    Raises:
        CorruptError: what a generation that stays needs cannot be told; nothing is removed.
        StoreLockedError: a refresh is running.
    """
    with locked(store.path, "a collection", brief=True), _abandoned_compaction(store) as drafts:
        with switching(store.path, "a collection"):  # no rollback goes to what is removed
            names = latest_first(store.path)
            stay = _manifests_that_stay(store, names, keep)
            needed = {segment.id for manifest in stay.values() for segment in manifest.segments}
            manifests = [store.path / GENERATIONS / f"{name}.json" for name in reversed(names) if name not in stay]
            segments = [path for path in sorted((store.path / SEGMENTS).iterdir()) if path.name not in needed]
            horizon = time.time() - BUILD_DAYS * 86400
            builds = [path for path in sorted((store.path / BUILDING).iterdir()) if path.name != COMPACTION_DRAFT]
            builds = [*drafts, *(path for path in builds if _touched(path) < horizon)]
            temporary = [*store.path.glob(".*.tmp"), *(store.path / GENERATIONS).glob(".*.tmp")]
            collected = Collected(
                generations=tuple(path.stem for path in manifests),
                segments=tuple(path.name for path in segments),
                builds=tuple(path.name for path in builds),
                size=sum(_size(path) for path in (*manifests, *segments, *builds, *temporary)),
            )
            if dry_run:
                return collected
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


@contextlib.contextmanager
def _abandoned_compaction(store: Store) -> Iterator[list[Path]]:
    """What a compaction left that was killed; none begins meanwhile."""
    drafts = [*(store.path / BUILDING).glob(COMPACTION_DRAFT)]
    with contextlib.ExitStack() as stack:
        if drafts:
            try:
                stack.enter_context(locked(store.path, "a collection", file=COMPACTION))
            except StoreLockedError:  # it is at work
                drafts = []
        yield drafts


def _manifests_that_stay(store: Store, names: list[str], keep: int) -> dict[str, Manifest]:
    """Of the generations that a collection keeps, by name; `names` are all, the latest first."""
    try:
        current = store.current()
    except NoGenerationError:  # which of them was served cannot be told
        return {name: _manifest_that_stays(store, name) for name in names}
    kept = {current, *names[: max(1, keep)], *_pinned(store).intersection(names)}
    if (parent := _manifest_that_stays(store, current, current).parent) in names:
        kept.add(str(parent))
    return {name: _manifest_that_stays(store, name, current) for name in kept}


def _manifest_that_stays(store: Store, name: str, current: str | None = None) -> Manifest:
    try:
        return store.manifest(name)
    except (CorruptError, GenerationNotFoundError) as error:
        path = store.path / GENERATIONS / f"{name}.json"
        remedy = "roll back to a generation that verifies" if name == current else "remove that file"
        raise CorruptError(
            f"nothing is removed: {path} is damaged or missing, so what it needs is unknown; {remedy}, then run again"
        ) from error


def _touched(path: Path) -> float:
    """When anything in a folder last changed, in seconds since the epoch."""
    return max((entry.stat().st_mtime for entry in (path, *path.rglob("*"))), default=0.0)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(entry.stat().st_size for entry in path.rglob("*"))
