"""List, verify and roll back: what each promises an operator."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from store_cases import (
    data_file,
    documents,
    flip,
    forge,
    holds,
    manifest_path,
    problems,
    refresh,
    segment_of,
    three_generations,
)

from store.errors import (
    CorruptError,
    FormatError,
    GenerationNotFoundError,
    StoreError,
    StoreNotFoundError,
)
from store.files import FileEntry
from store.format import CURRENT, SEGMENTS
from store.maintenance import gc, list_generations, rollback
from store.store import Store
from store.verification import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three generations of 3, 4 and 5 documents."""
    return three_generations(tmp_path / "store")


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


def test_maintenance_of_no_store(tmp_path: Path) -> None:
    """What is no store is not made one by looking at it."""
    store = Store(tmp_path / "nothing")
    with pytest.raises(StoreNotFoundError):
        store.require()
    for change in (rollback, lambda store: gc(store, keep=1)):
        with pytest.raises(StoreError):
            change(store)
    assert not store.path.exists()
