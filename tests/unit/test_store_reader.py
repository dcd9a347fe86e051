"""Open generations: lookups in a few calls, memory beyond the maps, and what is shared between readers."""

from __future__ import annotations

import os
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import add, batch_of, bytecodes, data_file, documents, embeddings, flip, holds, refresh, writer

from store.documents import Batch
from store.errors import CorruptError, GivenUpError
from store.files import FileEntry
from store.format import DIGEST, U64
from store.reader import Generation
from store.store import Store

MANY = 200_000


@pytest.fixture(scope="module", params=["string", "integer"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of 200,000 documents with tiny embeddings."""
    store = Store(tmp_path_factory.mktemp("large"))
    places = np.arange(MANY)
    ids = places.tolist() if request.param == "integer" else [f"document-{place}" for place in places.tolist()]
    batch = Batch(ids=ids, digests=np.zeros(MANY, DIGEST), times=places, positions=places)
    with writer(store, dimension=2, id_type=request.param) as into:
        into.add(batch, np.stack([places, -places], axis=1).astype(np.float32))
        with into.seal():
            pass
        into.publish({})
    return store


def some_ids(generation: Generation, count: int) -> Any:
    """Ids of `count` documents, far apart."""
    places = np.random.default_rng(count).integers(0, MANY, count)
    if generation.manifest.id_type == "integer":
        return places.astype(U64)
    return [f"document-{place}" for place in places.tolist()]


def test_an_open_generation_is_its_maps(large: Store) -> None:
    """An open, warm generation takes less than 2 bytes a document beyond its mapped files."""
    tracemalloc.start()
    generation = large.open(large.current())
    generation.warm()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    generation.close()
    assert held < 2 * MANY


def test_lookups_run_no_python_for_each_document(large: Store) -> None:
    """Finding and reading 10,000 documents executes as many Python instructions as ten."""
    generation = large.open(large.current())
    few, many = some_ids(generation, 10), some_ids(generation, 10_000)
    assert bytecodes(lambda: generation.locate(many)) == bytecodes(lambda: generation.locate(few)) > 0
    located = generation.locate(many), generation.locate(few)
    assert bytecodes(lambda: generation.read(located[0])) == bytecodes(lambda: generation.read(located[1])) > 0
    generation.close()


def test_every_document_is_found(large: Store) -> None:
    """Each of many documents is found at its own row, and an id beside each is not."""
    generation = large.open(large.current())
    strings = generation.manifest.id_type == "string"
    places = np.arange(MANY)
    present: Any = [f"document-{place}" for place in places.tolist()] if strings else places.astype(U64)
    absent: Any = [f"{id_}x" for id_ in present] if strings else places.astype(U64) + np.uint64(MANY)
    located = generation.locate(present)
    assert located.found.all()
    np.testing.assert_array_equal(generation.read(located)[:, 0], places.astype(np.float32))
    assert not generation.locate(absent).found.any()
    generation.close()


def test_ids_are_answered_in_their_order(tmp_path: Path) -> None:
    """Documents come in the order asked for, as often as they are asked for, and absent ones are left out."""
    store = Store(tmp_path)
    refresh(store, documents(9))
    generation = store.open(store.current())
    located = generation.locate(["document-7", "nowhere", "document-2", "document-7", "", "document-0"])
    assert located.found.tolist() == [True, False, True, True, False, True]
    np.testing.assert_array_equal(generation.read(located), embeddings(["text 7", "text 2", "text 7", "text 0"]))
    nothing = generation.locate([])
    assert generation.read(nothing).shape == (0, 16)
    assert generation.read(generation.locate(["nowhere"])).shape == (0, 16)
    generation.close()


def test_a_segment_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process reads a segment's checksum before it first opens it, and not again while the file is the same."""
    writing = Store(tmp_path)
    refresh(writing, documents(9))
    checked: list[Path] = []
    check = FileEntry.check

    def counted(self: FileEntry, path: Path, **options: Any) -> None:
        checked.append(path)
        check(self, path, **options)

    monkeypatch.setattr(FileEntry, "check", counted)
    store = Store(tmp_path)
    for _ in range(3):
        assert holds(store, documents(9))
    assert len(checked) == 1


def test_damage_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tries a damaged segment again is told the same without reading it, until its file changes or minutes pass."""
    refresh(Store(tmp_path), documents(9))
    store = Store(tmp_path)
    file, read = data_file(store), 0
    good = file.read_bytes()

    def chunks(path: Path) -> Iterator[memoryview]:
        nonlocal read
        read += 1
        yield memoryview(path.read_bytes())

    monkeypatch.setattr("store.files._chunks", chunks)
    flip(file, 6000)
    for _ in range(3):
        with pytest.raises(CorruptError, match=f"{file} is not what was written"):
            store.open(store.current())
    assert read == 1
    monkeypatch.setattr("store.reader._DAMAGED_SECONDS", 0.0)
    os.utime(file, ns=(0, 0))
    for _ in range(2):
        with pytest.raises(CorruptError):
            store.open(store.current())
    assert read == 3
    file.write_bytes(good)
    assert holds(store, documents(9))


def test_a_verification_can_be_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends does not read a large segment to its end first; what was verified before still opens."""
    refresh(Store(tmp_path), documents(9))
    before, ending = Store(tmp_path), Store(tmp_path)
    before.open(before.current()).close()
    read = 0

    def chunks(path: Path) -> Iterator[memoryview]:
        nonlocal read
        for byte in path.read_bytes():
            read += 1
            if read == 100:
                ending.give_up()
            yield memoryview(bytes([byte]))

    monkeypatch.setattr("store.files._chunks", chunks)
    with pytest.raises(GivenUpError, match="not verified"):
        ending.open(ending.current())
    assert read == 100
    before.give_up()
    before.open(before.current()).close()


def test_many_threads_share_a_store(tmp_path: Path) -> None:
    """Threads that open, read and close generations while others are published get what they asked for."""
    store = Store(tmp_path)
    refresh(store, documents(20))
    done = threading.Event()

    def reading() -> int:
        rounds = 0
        while not done.is_set() or not rounds:
            generation = store.open(store.current())
            located = generation.locate(["document-3", "document-19"])
            np.testing.assert_array_equal(generation.read(located), embeddings(["text 3", "text 19"]))
            generation.close()
            rounds += 1
        return rounds

    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(reading) for _ in range(4)]
        try:
            for count in range(21, 29):
                refresh(store, documents(count))
        finally:
            done.set()
        assert all(reader.result() for reader in readers)


def test_what_is_sealed_can_be_read(tmp_path: Path) -> None:
    """Before it is published, a sealed generation is read like any other, and reading it publishes nothing."""
    store = Store(tmp_path)
    with writer(store) as into:
        assert not into.add_known(batch_of(documents(9))).any()
        add(into, documents(9))
        with into.seal() as generation:
            found = generation.read(generation.locate(["document-8"]))
        np.testing.assert_array_equal(found, embeddings(["text 8"]))
    assert store.generations() == []
