"""Compaction: when it is due, what it keeps, and what may happen beside it."""

from __future__ import annotations

import errno
import fcntl
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import (
    SOFTWARE,
    Deletion,
    Document,
    assert_holds,
    change,
    data_file,
    delta,
    delta_writer,
    documents,
    flip,
    refresh,
    tree,
    writer,
)

from store import compaction as module
from store.compaction import compact, due
from store.documents import Batch
from store.errors import CorruptError, StoreError, StoreFullError, StoreLockedError, SupersededError
from store.files import FileEntry, locked, replace_file
from store.format import BUILDING, COMPACTION, CURRENT, DIGEST, SEGMENTS
from store.maintenance import gc, list_generations, pin, rollback, unpin
from store.manifest import Manifest, SegmentEntry
from store.store import Store
from store.verification import verify

BASE = documents(20)
CHANGES: list[list[Document | Deletion]] = [
    [Document("document-3", "second", 5), Document("new", "first", 6)],
    [Document("document-3", "third", 7), Deletion("document-4"), Deletion("new")],
    [Document("document-4", "back", 8), Deletion("document-5"), Document("newest", "only", 9)],
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of twenty documents and three deltas."""
    made = Store(tmp_path / "store")
    refresh(made, BASE)
    for changes in CHANGES:
        delta(made, changes)
    return made


def after(count: int) -> dict[Any, Document]:
    """The documents after so many of the deltas."""
    corpus = {one.id: one for one in BASE}
    for one in (one for changes in CHANGES[:count] for one in changes):
        if isinstance(one, Document):
            corpus[one.id] = one
        else:
            corpus.pop(one.id, None)
    return corpus


def is_now(store: Store, corpus: dict[Any, Document]) -> bool:
    """Whether the current generation is exactly these documents, and all generations are sound."""
    generation = store.open(store.current())
    try:
        assert_holds(generation, corpus, ["nowhere", *(one.id for one in BASE if one.id not in corpus)])
    finally:
        generation.close()
    return all(problem is None for _, problem in verify(store))


def sizes(store: Store) -> list[tuple[int, int]]:
    """Rows and tombstones of the current generation's segments, newest first."""
    return [(one.documents, one.deleted) for one in store.manifest(store.current()).segments]


def test_all_segments_become_one(store: Store) -> None:
    """The new generation has the same documents in one segment, without dead rows and tombstones; what was published,
    when, for which model and after which generation stays as it was.
    """
    before = store.manifest(store.current())
    assert sizes(store) == [(2, 1), (1, 2), (2, 0), (20, 0)]
    done = compact(store, software="tests 2")
    assert done is not None
    assert (done.before, done.segments, done.documents, done.dropped) == (before.name, 4, 20, 5)
    assert sizes(store) == [(20, 0)]
    assert is_now(store, after(3))
    manifest = store.manifest(done.generation)
    kept = ("documents", "parent", "created_ms", "watermark_ms", "model", "fingerprint", "seed", "quality")
    assert [getattr(manifest, name) for name in kept] == [getattr(before, name) for name in kept]
    assert (manifest.number, manifest.writer) == (before.number + 1, "tests 2")
    assert list((store.path / BUILDING).iterdir()) == []
    assert compact(store, software=SOFTWARE) is None
    assert refresh(store, [*after(3).values()]).encoded == []


@pytest.mark.parametrize(
    ("newest", "expected"), [(2, [(3, 2), (2, 0), (20, 0)]), (3, [(3, 2), (20, 0)]), (9, [(20, 0)])]
)
def test_the_newest_segments_become_one(store: Store, newest: int, expected: list[tuple[int, int]]) -> None:
    """Where older segments stay below, tombstones stay; of an id that has several changes the last is left."""
    compact(store, software=SOFTWARE, newest=newest)
    assert sizes(store) == expected
    assert is_now(store, after(3))
    delta(store, [Document("document-5", "back too")])
    assert is_now_with(store, Document("document-5", "back too"))
    compact(store, software=SOFTWARE, newest=2)
    assert is_now_with(store, Document("document-5", "back too"))


def is_now_with(store: Store, document: Document) -> bool:
    """Whether the current generation has this document besides those after the last delta."""
    generation = store.open(store.current())
    try:
        assert_holds(generation, after(3) | {document.id: document}, ["nowhere"])
    finally:
        generation.close()
    return True


def test_deletions_alone(tmp_path: Path) -> None:
    """Deltas that only delete merge to a segment without rows, and with the oldest to one without tombstones."""
    store = Store(tmp_path)
    refresh(store, BASE)
    for number in range(3):
        delta(store, [Deletion(f"document-{number}")])
    compact(store, software=SOFTWARE, newest=3)
    assert sizes(store) == [(0, 3), (20, 0)]
    assert is_now(store, {one.id: one for one in BASE[3:]})
    compact(store, software=SOFTWARE)
    assert sizes(store) == [(17, 0)]


@pytest.mark.parametrize(("encoding", "id_type"), [("uint8", "string"), ("uint8", "integer"), ("float16", "integer")])
def test_rows_are_copied_bit_for_bit(
    tmp_path: Path, encoding: str, id_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stored rows, scales, ids, digests and times are the same bits afterwards, however many blocks they fill."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 3)
    store, settings = Store(tmp_path), {"encoding": encoding, "id_type": id_type}
    ids: list[Any] = [*range(30)] if id_type == "integer" else [f"{'é' * (i % 7)}{i}" for i in range(30)]
    refresh(store, [Document(id_, f"text {id_}", number) for number, id_ in enumerate(ids)], **settings)
    delta(store, [Document(id_, f"other {id_}", 99) for id_ in ids[10:14]], **settings)
    delta(store, [Deletion(id_) for id_ in ids[3:6]], **settings)
    there = ids[:3] + ids[6:]

    def stored() -> list[Any]:
        generation = store.open(store.current())
        asked: Any = np.array(there, np.uint64) if id_type == "integer" else there
        rows_N = generation.locate(asked).rows
        bits: list[Any] = [generation.ids(rows_N), generation.read_rows(rows_N).tobytes()]
        bits += [generation.stack.times(rows_N).tobytes(), generation.stack.digests(rows_N).tobytes()]
        generation.close()
        return bits

    before = stored()
    compact(store, software=SOFTWARE)
    assert stored() == before
    assert sizes(store) == [(27, 0)]


def manifest_of(dead_share: float, *rows: int) -> Manifest:
    """A manifest of segments of so many rows, newest first."""
    file = FileEntry(size=1, xxh3_128="", sha256="")
    entries = tuple(SegmentEntry(id=f"{i:032x}", documents=count, deleted=0, file=file) for i, count in enumerate(rows))
    made: dict[str, Any] = dict.fromkeys(
        ("number", "seed", "dimension", "created_ms", "watermark_ms", "parent", "fingerprint", "model", "writer")
    )
    made |= {"id_type": "string", "encoding": "float32", "fixed_step": False, "quality": {}, "segments": entries}
    return Manifest(documents=round(sum(rows) * (1 - dead_share)), **made)


@pytest.mark.parametrize(
    ("dead_share", "rows", "newest"),
    [
        (0.0, (1_000,), 0),
        (0.0, (10, 10, 10, 1_000), 0),
        (0.0, (10, 10, 10, 10, 1_000), 4),
        (0.0, (10, 10, 10, 100, 1_000), 4),
        (0.0, (10, 10, 10, 200, 1_000), 3),
        (0.0, (10, 100, 100, 300, 100_000), 4),
        (0.0, (10, 10, 100, 500, 1_000_000), 2),
        (0.0, (500, 10, 10, 10, 1_000), 5),
        (0.0, (10,) * 30 + (100_000,), 30),
        (0.2, (10, 10, 1_000), 0),
        (0.3, (10, 10, 1_000), 3),
        (0.3, (1_000,), 0),
    ],
)
def test_when_it_is_due(dead_share: float, rows: tuple[int, ...], newest: int) -> None:
    """Beyond four segments the newest are merged, up to one that is over four times as large; where a quarter of the
    rows is dead, all are.
    """
    assert due(manifest_of(dead_share, *rows), max_segments=4, max_dead_share=0.25) == newest


def test_small_deltas_are_not_copied_for_ever() -> None:
    """A thousand deltas of ten documents keep the segments few, and copy each of their rows a few times."""
    rows, copied = [100_000], 0
    for _ in range(1_000):
        rows.insert(0, 10)
        while newest := due(manifest_of(0.0, *rows), max_segments=5, max_dead_share=0.25):
            copied += sum(rows[:newest])
            rows[:newest] = [sum(rows[:newest])]
        assert len(rows) <= 5
    assert sum(rows) == 110_000
    assert copied < 10 * 10_000


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


def test_a_rollback_goes_behind_a_compaction(store: Store) -> None:
    """A rollback from a compacted generation goes to the documents before the last delta, as from the one that it took
    the place of, and each generation can be gone back to by name.
    """
    names = store.generations()
    compact(store, software=SOFTWARE)
    assert rollback(store)[1] == names[2]
    assert is_now(store, after(2))
    for count, name in enumerate(names):
        rollback(store, name)
        assert is_now(store, after(count))


def test_collections_know_shared_segments(store: Store) -> None:
    """A collection removes a segment only when no generation that stays has it, pinned ones among them."""
    names = store.generations()
    base = store.manifest(names[0]).segments[0].id
    gc(store, keep=1)
    assert store.generations() == names[2:]
    assert len(list((store.path / SEGMENTS).iterdir())) == 4
    pin(store, names[2])
    pin(store, names[2])
    compact(store, software=SOFTWARE)
    delta(store, [Document("a", "text")])
    delta(store, [Document("b", "text")])
    gone = gc(store, keep=1)
    assert names[2] in store.generations()
    assert names[3] in gone.generations
    assert [one.pinned for one in list_generations(store)] == [True, False, False]
    assert (store.path / SEGMENTS / base).exists()
    rollback(store, names[2])
    assert is_now(store, after(2))
    rollback(store, store.generations()[-1])
    unpin(store, names[2])
    with pytest.raises(StoreError, match="pinned are: none"):
        unpin(store, names[2])
    with pytest.raises(StoreError, match="has no generation"):
        pin(store, "000099-00000000")
    gc(store, keep=1)
    assert names[2] not in store.generations()
    assert not (store.path / SEGMENTS / base).exists()
    assert not list(store.path.glob("generations/*.pin"))


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


def test_what_a_compaction_left_that_was_killed(store: Store) -> None:
    """The draft of a compaction that died is removed by the next one, and by a collection unless one is at work."""
    draft = store.path / BUILDING / "compaction" / "segment"
    draft.mkdir(parents=True)
    (draft / "data.mdb").write_bytes(bytes(1000))
    with locked(store.path, "a compaction", file=COMPACTION):
        assert gc(store, keep=9).builds == ()
    assert gc(store, keep=9, dry_run=True).builds == ("compaction",)
    assert draft.exists()
    assert gc(store, keep=9).size >= 1000
    assert not draft.exists()
    draft.mkdir(parents=True)
    compact(store, software=SOFTWARE)
    assert not draft.exists()
    assert is_now(store, after(3))


def test_publishing_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CURRENT cannot be replaced, neither manifest nor segment stays, and the message is that of a full disk."""
    before = tree(store.path)

    def replacing_no_current(path: Path, content: bytes) -> None:
        if path.name == CURRENT:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace_file(path, content)

    with monkeypatch.context() as failing:
        failing.setattr("store.manifest.replace_file", replacing_no_current)
        with pytest.raises(StoreFullError, match="bytes are needed"):
            compact(store, software=SOFTWARE)
    assert tree(store.path) == before
    compact(store, software=SOFTWARE)
    assert is_now(store, after(3))


def test_a_damaged_segment_is_not_copied(store: Store) -> None:
    """A compaction checks what it merges: of a damaged segment nothing gets a new checksum."""
    flip(data_file(store), 5000)
    before = tree(store.path)
    with pytest.raises(CorruptError, match="checksum"):
        compact(Store(store.path), software=SOFTWARE)
    assert tree(store.path) == before


@pytest.mark.parametrize(("limit", "value"), [("MAX_ROWS", 19), ("MAX_ID_TEXT_BYTES", 100)])
def test_more_than_a_segment_holds(store: Store, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    """Segments that are together too large for one stay as they are, and the message says what to do."""
    monkeypatch.setattr(module, limit, value)
    before = tree(store.path)
    with pytest.raises(StoreError, match="shard"):
        compact(store, software=SOFTWARE)
    assert tree(store.path) == before


def test_the_rows_are_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows of 40 MB a compaction has less than a tenth on the heap at any time: keys, and a block of rows."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", 512)
    monkeypatch.setattr("store.files._CHUNK", 1 << 16)
    store, count = Store(tmp_path), 40_000
    for places in (np.arange(count), np.arange(0, count, 9)):
        batch = Batch(
            ids=places.tolist(), digests=np.zeros(len(places), DIGEST), times=places + len(places), positions=places
        )
        with writer(store, dimension=256, id_type="integer", delta=len(places) < count) as into:
            into.add(batch, np.repeat(places[:, None].astype(np.float32), 256, axis=1))
            with into.seal():
                pass
            into.publish({})
    store.open(store.current()).close()
    tracemalloc.start()
    compact(store, software=SOFTWARE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sizes(store) == [(count, 0)]
    assert peak < 4_000_000
