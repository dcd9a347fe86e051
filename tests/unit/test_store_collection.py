"""Collecting garbage: what goes, what stays, and when nothing may go."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from store_cases import (
    data_file,
    documents,
    forge,
    holds,
    interrupt,
    manifest_path,
    problems,
    refresh,
    segment_of,
    three_generations,
    tree,
)

from store.copying import copy
from store.errors import CorruptError, GenerationNotFoundError
from store.format import BUILDING, CURRENT, GENERATIONS, SEGMENTS
from store.maintenance import BUILD_DAYS, gc, list_generations, pin, rollback
from store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three generations of 3, 4 and 5 documents."""
    return three_generations(tmp_path / "store")


def segments(store: Store) -> set[str]:
    """What is in the folder of segments."""
    return {path.name for path in (store.path / SEGMENTS).iterdir()}


@pytest.mark.parametrize(("keep", "kept"), [(1, 2), (2, 2), (3, 3), (9, 5)])
def test_gc_keeps_the_newest(store: Store, keep: int, kept: int) -> None:
    """The newest `keep` generations stay, and at least the current one and its parent; the others' segments go."""
    for count in (6, 7):
        refresh(store, documents(count))
    before, sizes = store.generations(), {name: _bytes(store, name) for name in store.generations()}
    gone = gc(store, keep=keep)
    assert store.generations() == before[-kept:]
    assert gone.generations == tuple(before[:-kept])
    assert segments(store) == {segment_of(store, name) for name in store.generations()}
    assert gone.size == sum(sizes[name] for name in gone.generations)
    assert len(gone.segments) == len(gone.generations)
    assert problems(store) == {}
    assert gc(store, keep=keep).size == 0


def _bytes(store: Store, name: str) -> int:
    return manifest_path(store, name).stat().st_size + data_file(store, name).stat().st_size


def test_gc_keeps_the_current_after_a_rollback(store: Store) -> None:
    """After a rollback the current generation and its parent stay, beside the newest."""
    first, second, third = store.generations()
    rollback(store)
    gc(store, keep=1)
    assert store.generations() == [first, second, third]
    rollback(store)
    gone = gc(store, keep=1)
    assert gone.generations == (second,)
    assert holds(store, documents(3))


def test_the_latest_is_what_was_sealed_last(store: Store, tmp_path: Path) -> None:
    """A store that was built again elsewhere begins at 1: what is copied from there is kept and gone back to before
    what has higher numbers, and is listed after it.
    """
    second, third = store.generations()[1:]
    elsewhere = Store(tmp_path / "elsewhere")
    copied = []
    for count in (6, 7, 8):
        refresh(elsewhere, documents(count))
        copied.append(copy(elsewhere, store)[0])
    assert [one.name for one in list_generations(store)][-3:] == copied
    pin(store, second)
    gc(store, keep=2)
    assert set(store.generations()) == {second, *copied[1:]}
    (store.path / CURRENT).unlink()
    assert rollback(store)[1] == copied[2]
    assert rollback(store) == (copied[2], copied[1])
    assert rollback(store) == (copied[1], second)
    assert third not in store.generations()


def test_gc_keeps_shared_segments(store: Store) -> None:
    """A segment stays as long as one kept generation names it."""
    first, second, third = store.generations()
    (store.path / CURRENT).write_text(f"{first}\n")
    later = store.manifest(third).created_ms + 1
    forge(store, lambda fields: fields.update(model="0" * 64, number=4, created_ms=later), number=4)
    gone = gc(store, keep=1)
    assert gone.generations == (first, second, third)
    assert segments(store) == {segment_of(store, store.current())}
    assert holds(store, documents(3))


def test_gc_removes_what_nobody_names(store: Store) -> None:
    """Segments that nobody names, copies that were interrupted and temporary files go, and other files with them."""
    before = tree(store.path)
    (store.path / SEGMENTS / ("0" * 32)).mkdir()
    (store.path / SEGMENTS / ("0" * 32) / "data.mdb").write_bytes(bytes(1000))
    (store.path / SEGMENTS / f".{'1' * 32}.copy").mkdir()
    (store.path / SEGMENTS / ".stray").write_bytes(bytes(10))
    (store.path / ".CURRENT.5.tmp").write_bytes(bytes(100))
    (store.path / GENERATIONS / ".000004-00000000.json.5.tmp").write_bytes(bytes(200))
    gone = gc(store, keep=3)
    assert tree(store.path) == before
    assert len(segments(store)) == 3
    assert gone.size == 1310
    assert gone.generations == ()


def test_gc_keeps_builds_for_a_week(store: Store) -> None:
    """An interrupted build stays for the next run, until nothing in it has changed for a week."""
    interrupt(store, documents(9, text="new"))
    (build,) = (store.path / BUILDING).iterdir()

    def age(days: float) -> None:
        for path in (*build.iterdir(), build):
            os.utime(path, (0, time.time() - days * 86400))

    age(BUILD_DAYS - 0.1)
    assert gc(store, keep=3).builds == ()
    age(BUILD_DAYS + 0.1)
    (build / "vectors.bin").touch()
    assert gc(store, keep=3).builds == ()
    age(BUILD_DAYS + 0.1)
    (store.path / BUILDING / "stray").touch()
    os.utime(store.path / BUILDING / "stray", (0, 0))
    gone = gc(store, keep=3)
    assert gone.builds == (build.name, "stray")
    assert gone.size > 9 * 64
    assert list((store.path / BUILDING).iterdir()) == []


def test_a_dry_run_changes_nothing(store: Store) -> None:
    """A dry run says what a collection would remove, and removes nothing."""
    (store.path / SEGMENTS / ("0" * 32)).mkdir()
    (store.path / ".CURRENT.5.tmp").write_bytes(bytes(100))
    before = tree(store.path)
    would = gc(store, keep=1, dry_run=True)
    assert tree(store.path) == before
    assert (store.path / SEGMENTS / ("0" * 32)).is_dir()
    assert len(would.generations) == 1
    assert len(would.segments) == 2
    assert gc(store, keep=1) == would


def test_gc_beside_readers(store: Store) -> None:
    """A process that reads a generation goes on reading it after it was collected."""
    first, *_ = store.generations()
    generation = store.open(first)
    gc(store, keep=1)
    assert first not in store.generations()
    assert generation.read(generation.locate(["document-2"])).shape == (1, 16)
    generation.close()
    with pytest.raises(GenerationNotFoundError):
        store.open(first)


def test_gc_stops_before_what_it_cannot_read(store: Store) -> None:
    """While CURRENT or a manifest that stays is damaged, nothing is removed, since what is needed is unknown. What the
    message says to do then helps.
    """
    first, second, third = store.generations()
    for path in (manifest_path(store, third), store.path / CURRENT):
        content = path.read_bytes()
        path.write_bytes(content[:-5])
        before = tree(store.path)
        with pytest.raises(CorruptError, match=rf"{path}.*roll ?back"):
            gc(store, keep=1)
        assert tree(store.path) == before
        path.write_bytes(content)
    manifest_path(store, third).write_bytes(b"")
    rollback(store)
    with pytest.raises(CorruptError, match=f"{manifest_path(store, third)} .* remove that file"):
        gc(store, keep=1)
    manifest_path(store, third).unlink()
    manifest_path(store, first).write_bytes(b"")
    with pytest.raises(CorruptError, match="remove that file"):
        gc(store, keep=1)
    manifest_path(store, first).unlink()
    gc(store, keep=1)
    assert segments(store) == {segment_of(store, second)}
    assert problems(store) == {}


def test_gc_before_the_first_generation(tmp_path: Path) -> None:
    """What a first refresh left that was killed as it sealed goes, and its rows stay for the next one, for a week."""
    store = Store(tmp_path / "store")
    store.create()
    assert gc(store, keep=1).size == 0
    interrupt(store, documents(9))
    (build,) = (store.path / BUILDING).iterdir()
    (store.path / SEGMENTS / ("0" * 32)).mkdir()
    (store.path / SEGMENTS / ("0" * 32) / "data.mdb").write_bytes(bytes(1000))
    (store.path / ".CURRENT.5.tmp").write_bytes(bytes(100))
    gone = gc(store, keep=1)
    assert (gone.generations, gone.segments, gone.builds, gone.size) == ((), ("0" * 32,), (), 1100)
    for path in (*build.iterdir(), build):
        os.utime(path, (0, 0))
    assert gc(store, keep=1).builds == (build.name,)
    interrupt(store, documents(9))
    gc(store, keep=1)
    assert refresh(store, documents(9)).encoded == []


def test_gc_without_current(store: Store) -> None:
    """Where CURRENT is missing, which generation was served cannot be told: all stay, and what nobody names goes."""
    names = store.generations()
    (store.path / CURRENT).unlink()
    (store.path / SEGMENTS / ("0" * 32)).mkdir()
    gone = gc(store, keep=1)
    assert (gone.generations, gone.segments) == ((), ("0" * 32,))
    manifest_path(store, names[0]).write_bytes(b"")
    with pytest.raises(CorruptError, match="remove that file"):
        gc(store, keep=1)
    assert store.generations() == names


def test_gc_of_a_current_generation_that_is_missing(store: Store) -> None:
    """While CURRENT names what is not there, nothing is removed, and the message says to roll back."""
    manifest_path(store, store.current()).unlink()
    before = tree(store.path)
    with pytest.raises(CorruptError, match="roll back"):
        gc(store, keep=1)
    assert tree(store.path) == before
