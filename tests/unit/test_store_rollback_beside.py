"""A rollback beside those who write: it waits for none of them, and none of them undoes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_cases import (
    SOFTWARE,
    Document,
    add,
    builds,
    change,
    delta,
    delta_writer,
    documents,
    holds,
    problems,
    refresh,
    three_generations,
    writer,
)

from store import maintenance
from store.adoption import adopt
from store.compaction import compact
from store.copying import copy
from store.errors import GenerationNotFoundError, SupersededError
from store.maintenance import gc, pin, rollback, unpin
from store.store import Store
from store.writer import Writer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three generations of 3, 4 and 5 documents."""
    return three_generations(tmp_path / "store")


def full(store: Store, act: Callable[[], object], *, sealed: bool) -> list[str]:
    """A refresh of nine documents during which something is done; returns the texts that it encoded."""
    with writer(store) as into:
        return finish(into, add(into, documents(9)), act, sealed=sealed)


def changes(store: Store, act: Callable[[], object], *, sealed: bool) -> list[str]:
    """A delta of one document, the same."""
    with delta_writer(store) as into:
        return finish(into, change(into, [Document("document-1", "changed")]), act, sealed=sealed)


def no_changes(store: Store, act: Callable[[], object], *, sealed: bool) -> list[str]:
    """A delta that changes nothing, the same."""
    with delta_writer(store) as into:
        return finish(into, [], act, sealed=sealed)


def finish(into: Writer, encoded: list[str], act: Callable[[], object], *, sealed: bool) -> list[str]:
    if not sealed:
        act()
    with into.seal():
        assert sealed, "sealed in vain"
        act()
    into.publish({})
    return encoded


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("write", [full, changes, no_changes])
def test_a_rollback_beside_a_refresh(store: Store, write: Callable[..., list[str]], sealed: bool) -> None:
    """It is done at once; the refresh or delta is given up and says so, leaves nothing but its rows, and the next one,
    which follows the generation gone back to, encodes nothing.
    """
    first, second, third = store.generations()
    with pytest.raises(SupersededError, match=f"{second} became current in place of {third}.*run this again"):
        write(store, lambda: rollback(store), sealed=sealed)
    assert store.current() == second
    assert holds(store, documents(4))
    assert store.generations() == [first, second, third]
    assert gc(store, keep=9).segments == ()
    assert problems(store) == {}
    if write is full:
        assert refresh(store, documents(9)).encoded == []
        assert holds(store, documents(9))
    else:
        assert delta(store, [Document("document-1", "changed")]).encoded == ([] if write is changes else ["changed"])
    assert store.manifest(store.current()).parent == second
    assert builds(store) == []


def test_a_rollback_there_and_back(store: Store) -> None:
    """Where what a refresh began from is current again by its end, nothing was decided against it."""
    third = store.current()
    full(store, lambda: (rollback(store), rollback(store, third)), sealed=True)
    assert holds(store, documents(9))
    assert store.manifest(store.current()).parent == third


def test_a_rollback_from_damage_beside_a_refresh(store: Store) -> None:
    """CURRENT that was damaged when a refresh began is no obstacle to it, unless somebody has mended it by then."""
    path, name = store.path / "CURRENT", store.current()
    path.write_bytes(b"")
    with pytest.raises(SupersededError, match=f"{name} became current in place of none"):
        full(store, lambda: rollback(store), sealed=True)
    assert store.current() == name
    path.write_bytes(b"")
    full(store, lambda: None, sealed=True)
    assert holds(store, documents(9))
    full(store, lambda: path.write_bytes(b""), sealed=True)
    assert holds(store, documents(9))


def test_a_rollback_beside_an_adoption_and_the_end_of_a_compaction(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither puts its generation over the one that was gone back to, even at the last moment, and nothing is left."""

    def judge(_: object) -> dict[str, Any]:
        rollback(store)
        return {}

    before = store.generations()
    with pytest.raises(SupersededError):
        adopt(store, model="ab" * 32, software=SOFTWARE, judge=judge)
    assert (store.current(), store.generations()) == (before[1], before)
    changed = delta(store, [Document("document-1", "changed")]).name
    monkeypatch.setattr("store.compaction.sync_directory", lambda _: rollback(store))
    with pytest.raises(SupersededError, match=f"{before[1]} became current in place of {changed}"):
        compact(store, software=SOFTWARE)
    assert (store.current(), store.generations()) == (before[1], [*before, changed])
    assert gc(store, keep=9).segments == ()


def test_a_rollback_beside_a_copy(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy into the store is given up; the next one copies nothing again."""
    there = Store(tmp_path / "there")
    first, second, third = store.generations()
    copy(store, there, first)
    copy(store, there, second)
    with monkeypatch.context() as patched:
        patched.setattr("store.copying.sync_file", lambda _: rollback(there))
        with pytest.raises(SupersededError):
            copy(store, there)
    assert there.current() == first
    assert copy(store, there) == (third, 0)


def test_pins_wait_for_no_refresh(store: Store) -> None:
    """A generation can be pinned, and let go, while a refresh runs."""
    first = store.generations()[0]
    with writer(store):
        pin(store, first)
        assert [one.pinned for one in maintenance.list_generations(store)] == [True, False, False]
        unpin(store, first)
    assert not any(one.pinned for one in maintenance.list_generations(store))


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Does something when a rollback has verified where it goes to."""
    verify = maintenance.verify_generation

    def verified(store: Store, name: str, sound: set[object]) -> None:
        verify(store, name, sound)
        monkeypatch.undo()
        act()

    monkeypatch.setattr(maintenance, "verify_generation", verified)


@pytest.mark.parametrize("compacted", [False, True])
def test_what_is_published_during_a_rollback_is_left_with_what_it_lies_over(
    store: Store, monkeypatch: pytest.MonkeyPatch, compacted: bool
) -> None:
    """A rollback that names no generation leaves what was current when it began, and with it the deltas and merges that
    came on top meanwhile; one that names a generation goes to that one.
    """
    first, _, third = store.generations()
    delta(store, [Document("early", "early")])
    published: list[str] = []

    def publish() -> None:
        if compacted and not published:
            assert compact(store, software=SOFTWARE) is not None
        published.append(delta(store, [Document("late", "late")]).name)

    meanwhile(monkeypatch, publish)
    assert rollback(store) == (published[0], third)
    meanwhile(monkeypatch, publish)
    assert rollback(store, first) == (published[1], first)


def test_two_rollbacks_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later one does not undo the earlier one, which it did not know of: it says what is current and why it stays.
    To where it was going itself is no difference.
    """
    first, second, third = store.generations()
    meanwhile(monkeypatch, lambda: rollback(store, first))
    with pytest.raises(SupersededError, match=f"meanwhile {first} became current in place of {third}"):
        rollback(store)
    assert store.current() == first
    rollback(store, third)
    meanwhile(monkeypatch, lambda: rollback(store, second))
    assert rollback(store) == (second, second)


def test_a_collection_during_a_rollback(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is collected before CURRENT is replaced is not gone back to, and CURRENT stays."""
    first, _, third = store.generations()
    meanwhile(monkeypatch, lambda: gc(store, keep=1))
    with pytest.raises(GenerationNotFoundError, match=first):
        rollback(store, first)
    assert store.current() == third
