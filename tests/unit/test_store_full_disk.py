"""A disk that fills up at any moment of a refresh, a delta or a compaction: an error that says so, the old generation,
a next run that works.

They run in a process of their own, which a write through a map without space behind it would kill.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from store_cases import Deletion, Document, batch_of, delta, documents, embeddings, holds, refresh, tree, writer

from store.compaction import compact
from store.copying import copy
from store.errors import StoreError, StoreFullError
from store.format import BUILDING, GENERATIONS, SEGMENTS
from store.maintenance import gc, rollback
from store.store import Store
from store.verification import verify

OLD, NEW = documents(40), documents(150, text="new")
HALVES = ("segment", "ordered.bin", "compaction")


def in_process(function: Callable[[Path], object], folder: Path, *prefix: str) -> list[list[object]]:
    """What `function` prints, a line of JSON each, when a process of its own calls it with the folder."""
    code = f"import sys, pathlib, {__name__} as here; here.{function.__name__}(pathlib.Path(sys.argv[1]))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{root}:{Path(__file__).parent}"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def own_mounts() -> list[str]:
    """What a command is started with to have mounts of its own; skips the test where users may not."""
    unshare = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let its users mount file systems")
    return unshare


def attempt(store: Store, chosen: list[Document], order: Iterable[int] = ()) -> str:
    """How a refresh ends: see `outcome`."""
    return outcome(lambda: refresh(store, chosen, order=list(order)))


def outcome(act: Callable[[], object]) -> str:
    """How it ends: "published", "full" where the error has the words that it must have, else the error."""
    try:
        act()
    except StoreFullError as error:
        return "full" if "bytes are needed" in str(error) and "run again" in str(error) else str(error)
    except (StoreError, OSError) as error:
        return repr(error)
    return "published"


def drafts(store: Store) -> list[str]:
    """What a change that failed while sealing, merging or publishing must not leave."""
    halves = [path.name for path in (store.path / BUILDING).rglob("*") if path.name in HALVES]
    kept = {store.current(), store.manifest(store.current()).parent}
    others = [path.name for path in (store.path / GENERATIONS).iterdir() if path.stem not in kept]
    segments = {one.id for name in kept.intersection(store.generations()) for one in store.manifest(str(name)).segments}
    return halves + others + [path.name for path in (store.path / SEGMENTS).iterdir() if path.name not in segments]


def report(*values: object) -> None:
    """Prints a line for the process that waits for it."""
    sys.stdout.write(json.dumps(values) + "\n")


def files_that_cannot_grow(folder: Path) -> None:
    """Refreshes under ever larger limits on the size of a file."""
    store = Store(folder)
    refresh(store, OLD)
    for limit in (0, 20, 1 << 10, 4 << 10, 9 << 10, 10 << 10, 16 << 10, 64 << 10, 256 << 10, 300 << 10):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        outcome = attempt(store, NEW)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        report(outcome, holds(store, OLD), drafts(store))
    report(attempt(store, NEW), holds(store, NEW), len(store.generations()))


def test_files_that_cannot_grow(tmp_path: Path) -> None:
    """Whichever file hits a limit, the refresh fails with the bytes that it needs, the old generation stays current and
    readable, no draft is left, and the next run succeeds.
    """
    *failed, last = in_process(files_that_cannot_grow, tmp_path)
    assert failed == [["full", True, []]] * 10
    assert last == ["published", True, 2]


def a_disk_that_is_full(folder: Path) -> None:
    """Refreshes and collects on a small file system with ever more room."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True)
    store, ballast = Store(folder / "store"), folder / "ballast"
    refresh(store, OLD)
    before = store.current()
    for room in range(0, 600 << 10, 4 << 10):
        disk = os.statvfs(folder)
        ballast.write_bytes(bytes(max(0, disk.f_bavail * disk.f_bsize - room)))
        # Every other time in another order than that of the build, which needs space for the rows once more.
        outcome = attempt(store, NEW, range(len(NEW))[:: 1 if room % (8 << 10) else -1])
        if outcome == "published":
            break
        left = drafts(store)
        gc(store, keep=1)
        report(outcome, store.current() == before and holds(store, OLD), left)
        ballast.unlink()
        for build in (store.path / BUILDING).iterdir():  # so that each run needs as much room as the first
            shutil.rmtree(build)
    report(outcome, holds(store, NEW), [str(problem) for _, problem in verify(store) if problem is not None])


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Wherever a disk runs full, in steps of a page, the refresh fails as it should, and a collection still runs."""
    *failed, last = in_process(a_disk_that_is_full, tmp_path, *own_mounts())
    assert len(failed) > 50
    assert failed == [["full", True, []]] * len(failed)
    assert last == ["published", True, []]


def grown(folder: Path) -> Store:
    """A store of OLD and a delta, which are to be merged."""
    store = Store(folder)
    refresh(store, OLD)
    delta(store, [*documents(100, first=40), Deletion("document-3")])
    return store


def is_old(store: Store) -> bool:
    """Whether the current generation is that of `grown`."""
    return holds(store, [one for one in documents(140) if one.id != "document-3"])


def changes_that_cannot_grow(folder: Path) -> None:
    """Deltas and compactions under ever larger limits on the size of a file."""
    store = grown(folder)
    before = store.current()
    for limit in (0, 20, 1 << 10, 4 << 10, 9 << 10, 16 << 10, 64 << 10, 256 << 10, 300 << 10):
        for act in (lambda: delta(store, NEW), lambda: compact(store, software="tests 1")):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            ended = outcome(act)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            report(ended, store.current() == before and is_old(store), drafts(store))
    compact(store, software="tests 1")
    report("published", is_old(store), drafts(store))
    delta(store, NEW)
    report("published", holds(store, NEW), len(store.manifest(store.current()).segments))


def test_changes_that_cannot_grow(tmp_path: Path) -> None:
    """Whichever file of a delta or a compaction hits a limit, it fails like a refresh, and the next one succeeds."""
    *failed, compacted, last = in_process(changes_that_cannot_grow, tmp_path)
    assert failed == [["full", True, []]] * 18
    assert compacted[:2] == ["published", True]
    assert last == ["published", True, 2]


def changes_on_a_disk_that_is_full(folder: Path) -> None:
    """Deltas, then compactions, on a small file system with ever more room."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], check=True)
    store, ballast = grown(folder / "store"), folder / "ballast"
    for act in (lambda: compact(store, software="tests 1"), lambda: delta(store, NEW)):
        before = store.current()
        for room in range(0, 1500 << 10, 12 << 10):
            disk = os.statvfs(folder)
            ballast.write_bytes(bytes(max(0, disk.f_bavail * disk.f_bsize - room)))
            ended = outcome(act)
            ballast.unlink()
            if ended == "published":
                break
            report(ended, store.current() == before and is_old(store), drafts(store))
            for build in (store.path / BUILDING).iterdir():  # so that each run needs as much room as the first
                shutil.rmtree(build)
        gc(store, keep=1)
    report(ended, holds(store, NEW), [str(problem) for _, problem in verify(store) if problem is not None])


def test_changes_on_a_disk_that_is_full(tmp_path: Path) -> None:
    """Wherever a disk runs full, a delta and a compaction fail as they should, and with room they go through."""
    *failed, last = in_process(changes_on_a_disk_that_is_full, tmp_path, *own_mounts())
    assert len(failed) > 40
    assert failed == [["full", True, []]] * len(failed)
    assert last == ["published", True, []]


def a_copy_without_room(folder: Path) -> None:
    """Copies under a limit on the size of a file, then without."""
    store, there = Store(folder / "store"), Store(folder / "there")
    refresh(store, NEW)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, resource.RLIM_INFINITY))
    try:
        copy(store, there)
    except StoreFullError as error:
        report(
            "full",
            "bytes are needed" in str(error),
            there.generations(),
            [*map(str, (there.path / SEGMENTS).iterdir())],
        )
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    copy(store, there)
    report("copied", holds(there, NEW))


def test_a_copy_without_room(tmp_path: Path) -> None:
    """A copy that runs out of space leaves nothing behind, and succeeds once there is room."""
    assert in_process(a_copy_without_room, tmp_path) == [["full", True, [], []], ["copied", True]]


def no_room_for_small_files(folder: Path) -> None:
    """Rolls back, and copies what is there already, where neither a manifest nor CURRENT can be written; then again."""
    store, there = Store(folder / "store"), Store(folder / "there")
    for chosen in (OLD, NEW):
        refresh(store, chosen)
        copy(store, there)
    before = tree(folder)
    for limit in (10, resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        outcomes = []
        for change in (lambda: rollback(store), lambda: copy(store, there, store.generations()[0])):
            try:
                change()
                outcomes.append("done")
            except StoreFullError as error:
                outcomes.append(str(error).partition(":")[0])
        report(outcomes, tree(folder) == before, holds(store, NEW if limit == 10 else OLD))


def test_no_room_for_small_files(tmp_path: Path) -> None:
    """Where there is no room for CURRENT or a manifest, that is said, and the store stays as it was."""
    full = [f"no space left in {tmp_path / name}" for name in ("store", "there")]
    failed, last = in_process(no_room_for_small_files, tmp_path)
    assert failed == [full, True, True]
    assert last == [["done", "done"], False, True]


def rows_after_a_failure(folder: Path) -> None:
    """Goes on adding documents after an addition that failed half-way."""
    store = Store(folder)
    with writer(store) as into:
        chosen = documents(400)
        into.add(batch_of(chosen[:3]), embeddings([document.text for document in chosen[:3]]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, resource.RLIM_INFINITY))
        try:
            into.add(batch_of(chosen), embeddings([document.text for document in chosen]))
        except StoreFullError:
            report("full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        try:
            into.add(batch_of(chosen), embeddings([document.text for document in chosen]))
        except ValueError:
            report("refused")
    report(attempt(store, documents(400)), holds(store, documents(400)))


def test_rows_after_a_failure(tmp_path: Path) -> None:
    """After an addition that failed half-way nothing can be added, so that no row ends up beside its place."""
    assert in_process(rows_after_a_failure, tmp_path) == [["full"], ["refused"], ["published", True]]
