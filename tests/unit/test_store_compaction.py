"""Compaction: when it is due, what it keeps, and what it leaves when it fails."""

from __future__ import annotations

import errno
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compaction_cases import BASE, after, is_now, sizes, three_deltas
from store_cases import SOFTWARE, Deletion, Document, assert_holds, data_file, delta, flip, refresh, tree, writer

from store import compaction as module
from store.compaction import compact, due
from store.documents import Batch
from store.errors import CorruptError, StoreError, StoreFullError
from store.files import FileEntry, locked, replace_file
from store.format import BUILDING, COMPACTION, CURRENT, DIGEST, SEGMENTS
from store.maintenance import gc, list_generations, pin, rollback, unpin
from store.manifest import Manifest, SegmentEntry
from store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of twenty documents and three deltas."""
    return three_deltas(tmp_path / "store")


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
        while newest := due(manifest_of(0.0, *rows), max_segments=4, max_dead_share=0.25):
            copied += sum(rows[:newest])
            rows[:newest] = [sum(rows[:newest])]
        assert len(rows) <= 4
    assert sum(rows) == 110_000
    assert copied < 14 * 10_000


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
