"""Compaction beside refreshes, rollbacks and other compactions: who waits, who is refused, and what becomes current."""

from __future__ import annotations

import fcntl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from compaction_cases import after, is_now, sizes, three_deltas
from store_cases import SOFTWARE, Deletion, Document, change, delta, delta_writer, documents, refresh, writer

from store.compaction import compact
from store.errors import StoreLockedError, SupersededError
from store.files import FileEntry, locked
from store.format import BUILDING, COMPACTION
from store.maintenance import gc, rollback
from store.store import Store
from store.verification import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of twenty documents and three deltas."""
    return three_deltas(tmp_path / "store")


def beside(store: Store, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Compacts the store, and does something when the segments are merged and not yet published."""
    of = FileEntry.of

    def of_(path: Path) -> FileEntry:
        entry = of(path)
        monkeypatch.undo()
        action()
        return entry

    monkeypatch.setattr(FileEntry, "of", of_)
    compact(store, software=SOFTWARE)


def test_deltas_go_on_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deltas that are published while segments are merged lie over the merged one, and it is their parent's."""
    more = [Document("document-3", "fourth"), Deletion("document-7"), Document("late", "late")]
    beside(store, monkeypatch, lambda: delta(store, more))
    assert sizes(store) == [(2, 1), (20, 0)]
    corpus = after(3) | {one.id: one for one in more if isinstance(one, Document)}
    del corpus["document-7"]
    assert is_now(store, corpus)
    names = store.generations()
    assert store.manifest(names[-1]).parent == names[-3]
    assert rollback(store) == (names[-1], names[-3])
    assert is_now(store, after(3))


@pytest.mark.parametrize("action", [lambda store: refresh(store, documents(3)), rollback])
def test_what_makes_it_pointless(
    store: Store, monkeypatch: pytest.MonkeyPatch, action: Callable[[Store], object]
) -> None:
    """Where a full refresh or a rollback comes in between, what is current by then stays, and nothing is left."""
    changed: list[str] = []

    def act() -> None:
        action(store)
        changed.append(store.current())

    with pytest.raises(SupersededError, match="nothing was changed"):
        beside(store, monkeypatch, act)
    assert [store.current()] == changed
    assert list((store.path / BUILDING).iterdir()) == []
    assert len(gc(store, keep=9).segments) == 0
    assert [problem for _, problem in verify(store) if problem] == []


def test_a_rollback_to_what_it_merged_is_no_obstacle(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forth and back again, the segments are those that were merged, and the merge counts."""
    name = store.current()
    beside(store, monkeypatch, lambda: (rollback(store), rollback(store, name)))
    assert sizes(store) == [(20, 0)]
    assert is_now(store, after(3))


def test_one_compaction_at_a_time(store: Store) -> None:
    """Another compaction is refused, and so is one while a refresh runs; both are told by whom, and change nothing."""
    before = store.generations()
    with locked(store.path, "a compaction", file=COMPACTION), pytest.raises(StoreLockedError, match="a compaction"):
        compact(store, software=SOFTWARE)
    with writer(store), pytest.raises(StoreLockedError, match="a refresh of model"):
        compact(store, software=SOFTWARE)
    assert store.generations() == before


def test_a_compaction_can_wait_to_begin(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to, it waits for a refresh that is running, and merges what is current then."""
    release = threading.Event()

    def flock(descriptor: int, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            release.set()
        real(descriptor, operation)

    real = fcntl.flock
    with delta_writer(store) as into:
        change(into, [Document("late", "late")])
        monkeypatch.setattr("store.files.fcntl.flock", flock)
        waiting = threading.Thread(target=compact, args=(store,), kwargs={"software": SOFTWARE, "wait": True})
        waiting.start()
        release.wait()
        with into.seal():
            pass
        into.publish({})
    waiting.join()
    assert sizes(store) == [(21, 0)]
    assert is_now(store, after(3) | {"late": Document("late", "late")})


def test_a_refresh_waits_for_the_end_of_a_compaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as a compaction publishes, a delta waits and is not refused; a compaction that hangs it names."""
    waits, publish = threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        publish.wait()

    def publish_late() -> None:
        try:
            delta(store, [Document("late", "late")])
        finally:
            waits.set()

    monkeypatch.setattr("store.files.time.sleep", sleep)
    late = threading.Thread(target=publish_late)
    with locked(store.path, "a step of a compaction", brief=True):
        late.start()
        waits.wait()
    publish.set()
    late.join()
    assert is_now(store, after(3) | {"late": Document("late", "late")})
    monkeypatch.setattr("store.files._PATIENCE", 0.0)
    step = "a step of a compaction"
    with locked(store.path, step, brief=True), pytest.raises(StoreLockedError, match=step):
        delta(store, [Document("later", "later")])


def test_a_compaction_waits_to_publish(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delta that began while segments were merged is waited for, however long it takes."""
    holding, waits = threading.Event(), threading.Event()

    def hold() -> None:
        with delta_writer(store) as into:
            change(into, [Document("late", "late")])
            holding.set()
            waits.wait()
            with into.seal():
                pass
            into.publish({})

    other = threading.Thread(target=hold)

    def begin() -> None:
        other.start()
        holding.wait()
        monkeypatch.setattr("store.files.fcntl.flock", flock)

    def flock(descriptor: int, operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            waits.set()
        real(descriptor, operation)

    real = fcntl.flock
    try:
        beside(store, monkeypatch, begin)
    finally:
        waits.set()
        other.join()
    assert is_now(store, after(3) | {"late": Document("late", "late")})
