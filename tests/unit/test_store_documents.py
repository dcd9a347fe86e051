"""The documents of a refresh: which ids a store takes, and which document an id stands for."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import Document, add, batch_of, documents, embeddings, holds, read, refresh, weak_until, writer

from store import format as fmt
from store.documents import Batch
from store.errors import EmptyGenerationError, IdTypeError, NoGenerationError, StoreError
from store.store import Store
from store.verification import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "store")


def test_two_ids_with_one_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """When two ids share a key, the refresh takes the next seed, says so in the manifest, and both are found."""
    monkeypatch.setattr("store.keys.xxhash", weak_until(3))
    chosen = documents(9)
    refresh(store, chosen)
    assert store.manifest(store.current()).seed == 3
    assert holds(store, chosen)
    assert [problem for _, problem in verify(store)] == [None, None]


def test_the_seed_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next refresh begins with the seed of the generation that it follows."""
    with monkeypatch.context() as patched:
        patched.setattr("store.keys.xxhash", weak_until(2))
        refresh(store, documents(9))
    refresh(store, documents(3))
    assert store.manifest(store.current()).seed == 2
    assert holds(store, documents(3))


def test_a_repeated_id_is_no_collision(store: Store) -> None:
    """An id that comes again has its own key again, which is no reason to change the seed; the last one wins."""
    chosen = documents(5)
    done = refresh(store, [*chosen, Document("document-2", "changed"), Document("document-2", "changed again")])
    assert done.duplicates == 2
    assert store.manifest(store.current()).seed == 0
    chosen[2] = Document("document-2", "changed again")
    assert holds(store, chosen)


def test_no_seed_helps(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash under which ids share keys whatever the seed is reported, and nothing is published."""
    monkeypatch.setattr("store.keys.xxhash", weak_until(1_000))
    with pytest.raises(StoreError, match="16 seeds"):
        refresh(store, documents(9))
    with pytest.raises(NoGenerationError):
        store.current()


@pytest.mark.parametrize(
    ("id_type", "bad"),
    [
        ("string", ""),
        ("string", "x" * 512),
        ("string", "é" * 256),
        ("string", "\ud800"),
        ("string", b"bytes"),
        ("string", 5),
        ("string", None),
        ("integer", "5"),
        ("integer", "five"),
        ("integer", 1.0),
        ("integer", -1),
        ("integer", 2**64),
        ("integer", None),
    ],
)
def test_a_bad_id_is_refused(store: Store, id_type: str, bad: Any) -> None:
    """An id that is not of the store's type, or too long, is refused and not turned into another one."""
    batch = batch_of([Document("good" if id_type == "string" else 7, "a"), Document(bad, "b")])
    with writer(store, id_type=id_type) as into, pytest.raises(IdTypeError):
        into.add(batch, embeddings(["a", "b"]))


def test_the_longest_and_shortest_ids(store: Store) -> None:
    """Ids from 1 to 511 bytes of UTF-8 are stored and found, however they differ."""
    ids = ["a", "A", "\x00", "x" * 511, "x" * 510, "é" * 255, "\U0001f600" * 127, "e\u0301", "é"]
    refresh(store, [Document(id_, f"text of {i}") for i, id_ in enumerate(ids)])
    np.testing.assert_array_equal(read(store, ids), embeddings([f"text of {i}" for i in range(len(ids))]))


def test_integers_of_all_64_bits(store: Store) -> None:
    """Integer ids over the whole of 0 to 2^64 - 1 come back as they were given."""
    numbers = [0, 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
    refresh(store, [Document(number, f"text {number}") for number in numbers], id_type="integer")
    found = read(store, np.array(numbers, fmt.U64))
    np.testing.assert_array_equal(found, embeddings([f"text {number}" for number in numbers]))
    generation = store.open(store.current())
    assert sorted(generation.ids(np.arange(len(numbers)))) == numbers
    generation.close()


@pytest.mark.parametrize("id_type", ["string", "integer"])
def test_asking_with_the_other_type(store: Store, id_type: str) -> None:
    """Readers that ask with ids of the other type are told so, not that the documents are not there."""
    refresh(store, [Document("5" if id_type == "string" else 5, "text")], id_type=id_type)
    generation = store.open(store.current())
    with pytest.raises(IdTypeError, match=id_type):
        generation.locate(np.array([5], fmt.U64) if id_type == "string" else ["5"])
    generation.close()


def test_long_ids_in_little_memory(store: Store) -> None:
    """Sealing takes memory for the ids once, and not a multiple of it."""
    chosen = [Document(f"{number:0511d}", "text") for number in range(5_000)]
    with writer(store) as into:
        add(into, chosen, size=1_000)
        tracemalloc.start()
        with into.seal():
            _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 5_000 * 511 + (20 << 20)


@pytest.mark.parametrize("limit", ["MAX_ROWS", "MAX_ID_TEXT_BYTES"])
def test_too_many_documents(store: Store, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents beyond what a segment holds are refused when they are added, with the advice to shard; as many fit."""
    chosen = documents(10)
    monkeypatch.setattr(f"store.documents.{limit}", 10 if limit == "MAX_ROWS" else sum(len(one.id) for one in chosen))
    refresh(store, chosen)
    with writer(store) as into:
        add(into, chosen)
        with pytest.raises(StoreError, match="shard the corpus over several stores"):
            add(into, documents(1, first=10))
    assert holds(store, chosen)


def test_the_limits_are_what_lmdb_takes() -> None:
    """Of a segment at its limits no value but the vectors, which are cut, is larger than LMDB takes."""
    rows = fmt.MAX_ROWS
    buckets = fmt.U32.itemsize * ((1 << rows.bit_length()) + 1)
    arrays = (fmt.U64.itemsize * (rows + 1), fmt.DIGEST.itemsize * rows, fmt.MAX_ID_TEXT_BYTES, buckets)
    assert max(arrays) <= fmt.MAX_PART_BYTES < 1 << 32


@pytest.mark.parametrize("id_type", ["string", "integer"])
def test_memory_of_a_refresh(store: Store, id_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is sealed a document and its row take 44 bytes, in batches of four too, and then 66 and its id."""
    for block in ("files._CHUNK", "keys._BLOCK", "writer._GATHER_ROWS"):  # which also take memory, but always the same
        monkeypatch.setattr(f"store.{block}", 1 << 10)
    count, size = 20_000, 4
    ids: list[Any] = [f"document-{number:07d}" if id_type == "string" else number for number in range(count)]
    places = np.random.default_rng(0).permutation(count)
    drawn = np.frombuffer(np.random.default_rng(1).bytes(16 * count), fmt.DIGEST)
    with writer(store, dimension=1, id_type=id_type) as into:
        into.add(Batch(ids=ids[:1], digests=drawn[:1], times=places[:1], positions=places[:1]), np.zeros((1, 1), "<f4"))
        tracemalloc.start()
        for start in range(0, count, size):
            here = places[start : start + size]
            batch = Batch(ids=[ids[i] for i in here.tolist()], digests=drawn[here], times=here, positions=here)
            into.add(batch, np.zeros((size, 1), np.float32))
        into.sync()
        added, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        with into.seal():
            _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    slack = 1 << 16
    assert added < 44 * count + slack
    assert peak < (66 + (16 if id_type == "string" else 0)) * count + slack


@pytest.mark.parametrize("batches", [0, 1])
def test_nothing_to_publish(store: Store, batches: int) -> None:
    """A refresh without documents publishes nothing, even when it was given batches of none."""
    refresh(store, documents(3))
    before = store.current()
    empty = batch_of([])
    with writer(store) as into:
        for _ in range(batches):
            assert not into.add_known(empty).any()
            into.add(empty, embeddings([]))
        with pytest.raises(EmptyGenerationError), into.seal():
            pass
    assert store.current() == before
    assert holds(store, documents(3))
