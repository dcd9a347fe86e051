"""List, verify, roll back and collect: what each promises an operator."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from store_cases import data_file, documents, flip, forge, holds, interrupt, refresh, tree

from store.errors import (
    CorruptError,
    FormatError,
    GenerationNotFoundError,
    NoGenerationError,
    StoreError,
    StoreNotFoundError,
)
from store.files import FileEntry
from store.format import BUILDING, CURRENT, GENERATIONS, SEGMENTS
from store.maintenance import BUILD_DAYS, gc, list_generations, rollback
from store.store import Store
from store.verification import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three generations of 3, 4 and 5 documents."""
    made = Store(tmp_path / "store")
    for count in (3, 4, 5):
        refresh(made, documents(count))
    return made


def problems(store: Store, name: str | None = None) -> dict[str, str]:
    """What `verify` finds wrong, by what it checked."""
    return {checked: str(problem) for checked, problem in verify(store, name) if problem is not None}


def manifest_path(store: Store, name: str) -> Path:
    """A generation's manifest."""
    return store.path / GENERATIONS / f"{name}.json"


def segments(store: Store) -> set[str]:
    """What is in the folder of segments."""
    return {path.name for path in (store.path / SEGMENTS).iterdir()}


def segment_of(store: Store, name: str) -> str:
    """The segment that a generation names."""
    return store.manifest(name).segments[0].id


def test_list_shows_every_generation(store: Store) -> None:
    """The list has every generation, oldest first, marks the current one, and gives its manifest and size."""
    listed = list_generations(store)
    assert [one.name for one in listed] == store.generations()
    assert [one.current for one in listed] == [False, False, True]
    assert [one.manifest for one in listed] == [store.manifest(name) for name in store.generations()]
    assert [one.size for one in listed] == [data_file(store, name).stat().st_size for name in store.generations()]
    assert {one.problem for one in listed} == {None}


def test_list_shows_what_is_damaged(store: Store) -> None:
    """A generation whose manifest is damaged is listed with its problem, and a damaged CURRENT marks none."""
    first, second, _ = store.generations()
    manifest_path(store, second).write_bytes(b"{}")
    (store.path / CURRENT).write_bytes(b"")
    listed = list_generations(store)
    assert [one.current for one in listed] == [False] * 3
    assert [one.manifest is None for one in listed] == [False, True, False]
    assert listed[0].name == first
    assert str(manifest_path(store, second)) in str(listed[1].problem)


def test_list_of_a_new_store(tmp_path: Path) -> None:
    """A store that nothing was published in has an empty list."""
    store = Store(tmp_path)
    store.create()
    assert list_generations(store) == []


def test_verify_a_sound_store(store: Store) -> None:
    """Verifying checks CURRENT and every generation, or the one that is named, and finds nothing in a sound store."""
    assert [name for name, _ in verify(store)] == ["CURRENT", *store.generations()]
    assert problems(store) == {}
    first = store.generations()[0]
    assert list(verify(store, first)) == [(first, None)]


def test_verify_names_what_is_damaged(store: Store) -> None:
    """Each damaged generation is found, by the file that is damaged, and the others are found sound."""
    first, second, third = store.generations()
    flip(data_file(store, first), 6000)
    manifest_path(store, second).write_bytes(manifest_path(store, second).read_bytes()[:-1])
    found = problems(store)
    assert list(found) == [first, second]
    assert str(data_file(store, first)) in found[first]
    assert str(manifest_path(store, second)) in found[second]
    shutil.rmtree(store.path / SEGMENTS / segment_of(store, third))
    assert str(store.path / SEGMENTS) in problems(store)[third]


def test_verify_a_generation_that_is_missing(store: Store) -> None:
    """Verifying a generation that is not there says so."""
    assert "has no generation" in problems(store, "000009-00000000")["000009-00000000"]


def test_verify_a_store_without_generations(store: Store, tmp_path: Path) -> None:
    """Where nothing was published yet there is nothing to verify. A CURRENT without its generations is damage."""
    empty = Store(tmp_path / "empty")
    empty.create()
    assert list(verify(empty)) == []
    for name in store.generations():
        manifest_path(store, name).unlink()
    assert list(problems(store)) == ["CURRENT"]
    (empty.path / CURRENT).write_bytes(b"")
    assert list(problems(empty)) == ["CURRENT"]


def test_a_collection_before_a_verification(store: Store) -> None:
    """A generation that is collected while it waits to be verified is not reported, and not called damaged."""
    first, *others = store.generations()
    verification = verify(store)
    checked = [next(verification)]
    gc(store, keep=1)
    checked += verification
    assert first not in store.generations()
    assert checked == [(name, None) for name in ("CURRENT", *others)]


def test_a_collection_during_a_verification(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation that is collected while its files are read is not reported, or if it was asked for, as collected."""
    _, second, third = store.generations()
    check = FileEntry.check

    def check_too_late(self: FileEntry, path: Path, **options: Any) -> None:
        gc(store, keep=1)
        check(self, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(FileEntry, "check", check_too_late)
        assert problems(store) == {}
    assert store.generations() == [second, third]
    refresh(store, documents(6))
    monkeypatch.setattr(FileEntry, "check", check_too_late)
    assert "collected meanwhile" in problems(store, second)[second]


def test_a_collection_beside_a_list(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation that is collected before its manifest is read is not listed."""
    before = store.generations()
    gc(store, keep=1)
    monkeypatch.setattr(store, "generations", lambda: before)
    assert [(one.name, one.problem) for one in list_generations(store)] == [(name, None) for name in before[1:]]


def test_verify_beside_readers(store: Store) -> None:
    """A generation that this process is reading can be verified and rolled back to."""
    first, *_ = store.generations()
    generations = [store.open(name) for name in (first, store.current())]
    assert problems(store) == {}
    rollback(store, first)
    assert store.current() == first
    for generation in generations:
        assert generation.locate(["document-1"]).found.all()
        generation.close()


def test_roll_back_to_the_parent(store: Store) -> None:
    """By default the parent of the current generation becomes the current one, as often as there is one."""
    first, second, third = store.generations()
    assert rollback(store) == (third, second)
    assert rollback(store) == (second, first)
    assert holds(store, documents(3))
    with pytest.raises(GenerationNotFoundError, match="no generation before"):
        rollback(store)
    assert store.current() == first
    assert store.generations() == [first, second, third]


def test_roll_back_to_a_name(store: Store) -> None:
    """Any generation can be named, a later one too."""
    first, _, third = store.generations()
    assert rollback(store, first) == (third, first)
    assert rollback(store, third) == (first, third)
    assert holds(store, documents(5))


def test_a_damaged_target_is_refused(store: Store) -> None:
    """A generation that is named and does not verify never becomes the current one, whatever of it is damaged."""
    first, second, third = store.generations()
    flip(data_file(store, second), 6000)
    with pytest.raises(CorruptError, match=segment_of(store, second)):
        rollback(store, second)
    manifest_path(store, first).write_bytes(b"")
    for target, error in ((first, CorruptError), ("000009-00000000", GenerationNotFoundError)):
        with pytest.raises(error):
            rollback(store, target)
    assert store.current() == third


def test_a_parent_that_cannot_be_rolled_back_to(store: Store) -> None:
    """When the parent is damaged or gone, the newest generation before the current one that verifies replaces it."""
    first, second, third = store.generations()
    fourth = refresh(store, documents(6)).name
    flip(data_file(store, third), 6000)
    assert rollback(store) == (fourth, second)
    rollback(store, fourth)
    manifest_path(store, third).unlink()
    flip(data_file(store, second), 6000)
    assert rollback(store) == (fourth, first)


def test_a_current_generation_without_a_parent(store: Store) -> None:
    """After a refresh over a damaged manifest, which has no parent, rolling back finds the newest one before it that
    verifies.
    """
    _, second, third = store.generations()
    manifest_path(store, third).write_bytes(b"{}")
    mended = refresh(store, documents(6)).name
    assert store.manifest(mended).parent is None
    assert rollback(store) == (mended, second)


@pytest.mark.parametrize("current", [b"", b"garbage\n", b"000009-00000000\n", None])
def test_a_damaged_current_is_mended(store: Store, current: bytes | None) -> None:
    """When CURRENT is damaged, names a generation that is missing, or is missing itself, the newest generation that
    verifies becomes the current one, or the one that is named.
    """
    first, second, third = store.generations()
    flip(data_file(store, third), 6000)
    path = store.path / CURRENT
    for target, expected in ((None, second), (first, first)):
        path.unlink()
        if current is not None:
            path.write_bytes(current)
        assert rollback(store, target)[1] == expected
        assert store.current() == expected


def test_a_damaged_current_manifest_is_left(store: Store) -> None:
    """When the current manifest is damaged, its parent cannot be known: the newest generation that verifies it is."""
    _, second, third = store.generations()
    manifest_path(store, third).write_bytes(b"{}")
    assert rollback(store) == (third, second)


def test_nothing_to_roll_back_to(store: Store, tmp_path: Path) -> None:
    """When no generation verifies, or there is none, rolling back says so and changes nothing."""
    for name in store.generations():
        flip(data_file(store, name), 6000)
    (store.path / CURRENT).write_bytes(b"")
    with pytest.raises(CorruptError, match="no generation to go back to"):
        rollback(store)
    assert (store.path / CURRENT).read_bytes() == b""
    empty = Store(tmp_path / "empty")
    empty.create()
    with pytest.raises(StoreError):
        rollback(empty)


def test_a_newer_generation_can_be_left(store: Store) -> None:
    """After a downgrade, naming a generation leaves one that this version cannot read."""
    third = store.current()
    newer = forge(store, lambda fields: fields.update(format=2))
    with pytest.raises(FormatError, match="update"):
        rollback(store)
    assert rollback(store, third) == (newer, third)


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


def test_gc_keeps_shared_segments(store: Store) -> None:
    """A segment stays as long as one kept generation names it."""
    first, second, third = store.generations()
    (store.path / CURRENT).write_text(f"{first}\n")
    forge(store, lambda fields: fields.update(model="0" * 64, number=4), number=4)
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


def test_gc_of_a_current_generation_that_is_missing(store: Store) -> None:
    """While CURRENT names what is not there, nothing is removed, and the message says to roll back."""
    manifest_path(store, store.current()).unlink()
    before = tree(store.path)
    with pytest.raises(CorruptError, match="roll back"):
        gc(store, keep=1)
    assert tree(store.path) == before


def test_maintenance_of_no_store(tmp_path: Path) -> None:
    """What is no store is not made one by looking at it."""
    store = Store(tmp_path / "nothing")
    with pytest.raises(StoreNotFoundError):
        store.require()
    for change in (rollback, lambda store: gc(store, keep=1)):
        with pytest.raises(StoreError):
            change(store)
    assert not store.path.exists()
    store.create()
    with pytest.raises(NoGenerationError):
        gc(store, keep=1)
