"""The refresh pipeline against a real store and a real, tiny bundle."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from refresh_cases import WINDOW, WORDS, assert_stored, corpus, count, refreshed, stored, texts

from encoder_server.documents import Document, Rejection
from encoder_server.refresh import Refresh
from store.errors import EmptyGenerationError, IdTypeError, StoreLockedError, SupersededError
from store.format import GENERATIONS
from store.maintenance import rollback
from store.store import Store
from twinbert.bundle import Bundle
from twinbert.errors import MismatchError
from twinbert.runtime import Runtime


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.usefixtures("small_windows")
def test_every_document_is_stored_with_its_own_embedding(store: Store, runtime: Runtime) -> None:
    """Whatever window and run a document was in, its stored embedding scores as its text encoded afresh does."""
    documents = corpus(300)
    name, progress = refreshed(store, runtime, documents)
    assert (name, count(store)) == (store.current(), 300)
    assert (progress.received, progress.encoded, progress.reused, progress.rejected) == (300, 300, 0, 0)
    rows = stored(store, [document.key for document in documents])
    query, task = runtime.encode(["large wood table"]), np.zeros(300, dtype=np.int64)
    exact = runtime.encode([document.text for document in documents], "document")
    np.testing.assert_allclose(runtime.cross(query, rows, task), runtime.cross(query, exact, task), atol=1e-6)


@pytest.mark.usefixtures("small_windows")
def test_only_what_changed_is_encoded(store: Store, runtime: Runtime) -> None:
    """A second refresh encodes the texts that are new, and takes the rows of the others, also under new ids."""
    refreshed(store, runtime, corpus(200))
    documents = {document.key: document.text for document in corpus(200)}
    documents["d7"], documents["d150"] = "another text", "yet another text"
    documents["moved"] = documents.pop("d9")
    _, progress = refreshed(store, runtime, [Document(key, text, None) for key, text in documents.items()])
    assert (progress.encoded, progress.reused) == (2, 198)
    assert_stored(store, runtime, {str(key): text for key, text in documents.items()})


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("distance", [1, 3 * WINDOW])
def test_of_one_id_the_last_document_wins(store: Store, runtime: Runtime, distance: int) -> None:
    """Within a window and across windows, whether the rows of either were encoded or reused."""
    old = texts(4, seed=1)
    refreshed(store, runtime, [Document(f"old{number}", text, None) for number, text in enumerate(old)])
    new = texts(4, seed=2)
    pairs = {"both encoded": (new[0], new[1]), "second reused": (new[2], old[0])}
    pairs |= {"first reused": (old[1], new[3]), "both reused": (old[2], old[3])}
    between = corpus(distance, seed=3)
    first = [Document(key, pair[0], 2_000) for key, pair in pairs.items()]
    second = [Document(key, pair[1], 1_000) for key, pair in pairs.items()]
    _, progress = refreshed(store, runtime, [*first, *between, *second])
    assert progress.duplicates == 4
    if distance < WINDOW:  # the first of a pair is not looked at
        assert (progress.skipped, progress.encoded, progress.reused) == (4, 2 + distance, 2)
    else:
        assert (progress.skipped, progress.encoded, progress.reused) == (0, 4 + distance, 4)
    assert progress.finished == progress.received
    wanted = {key: pair[1] for key, pair in pairs.items()} | {str(one.key): one.text for one in between}
    assert_stored(store, runtime, wanted)


def test_the_order_of_the_input_is_irrelevant(store: Store, runtime: Runtime) -> None:
    """The same documents in any order are the same corpus."""
    documents = corpus(200)
    refreshed(store, runtime, documents)
    other = Store(store.path.with_name("other"))
    refreshed(other, runtime, random.Random(5).sample(documents, k=200))
    keys = [document.key for document in documents]
    np.testing.assert_allclose(stored(other, keys), stored(store, keys), rtol=0, atol=1e-6)


def test_rejections_are_counted_and_left_out(store: Store, runtime: Runtime) -> None:
    """A rejection among the documents changes nothing for its neighbours."""
    rejection = Rejection("a.jsonl:2", 1, "x", "the text is blank")
    _, progress = refreshed(store, runtime, [*corpus(3), rejection, *corpus(5)[3:]])
    assert (progress.received, progress.rejected, progress.encoded) == (6, 1, 5)
    assert_stored(store, runtime, {str(document.key): document.text for document in corpus(5)})


def test_a_refresh_without_a_document_says_why(store: Store, runtime: Runtime) -> None:
    """Nothing is published when no document came, or when all were rejected; the message, which an encoder logs, gives
    a reason and quotes nothing.
    """
    with pytest.raises(EmptyGenerationError, match="no document came"):
        refreshed(store, runtime, [])
    with pytest.raises(
        EmptyGenerationError, match=r"all 1 documents were rejected, the first because not a JSON object$"
    ):
        refreshed(store, runtime, [Rejection("a:1", 0, "", "not a JSON object: 'a secret'")])
    assert store.generations() == []


def test_integer_ids(store: Store, runtime: Runtime) -> None:
    """The id type is that of the first document of a new store, and every id from 0 to 2^64 - 1 is found again."""
    keys = [0, 1, 1 << 63, (1 << 64) - 1]
    refreshed(store, runtime, [Document(key, text, None) for key, text in zip(keys, texts(4), strict=True)])
    assert store.manifest(store.current()).id_type == "integer"
    exact = runtime.encode(texts(4), "document")
    np.testing.assert_allclose(stored(store, np.array(keys, dtype=np.uint64)), exact, rtol=0, atol=1e-5)
    with pytest.raises(IdTypeError), Refresh(store, runtime, id_type="string"):
        pass


def test_the_fixed_step_of_a_tanh_tower(store: Store, other_bundle: Path) -> None:
    """A tower that ends in tanh is stored as uint8 with the step 2/255, which costs at most 1/255 a value."""
    tanh = Runtime(Bundle.open(other_bundle), towers=("query", "document"))
    refreshed(store, tanh, corpus(100), encoding="uint8")
    manifest = store.manifest(store.current())
    assert manifest.fixed_step
    assert 1e-4 < manifest.quality["max_embedding_difference"] <= 1 / 255


@pytest.mark.parametrize("encoding", ["float32", "float16", "uint8"])
def test_what_an_encoding_costs_is_recorded(store: Store, runtime: Runtime, encoding: str) -> None:
    """The manifest says by how much embeddings and scores of a sample differ; the next refresh keeps the encoding."""
    refreshed(store, runtime, corpus(100), encoding=encoding)
    quality = store.manifest(store.current()).quality
    assert quality["sample"] == 64
    bounds = {"float32": (0, 1e-5), "float16": (1e-6, 1e-2), "uint8": (1e-4, 1e-1)}[encoding]
    assert bounds[0] <= quality["max_embedding_difference"] <= bounds[1]
    assert 0 <= quality["mean_score_difference"] <= quality["max_score_difference"] <= 10 * bounds[1]
    _, progress = refreshed(store, runtime, corpus(100))
    assert (store.manifest(store.current()).encoding, progress.reused) == (encoding, 100)


def test_a_refresh_that_mends_a_store_keeps_what_it_is(store: Store, runtime: Runtime) -> None:
    """Where the current manifest is damaged, the generation before says how embeddings are stored and what ids are."""
    refreshed(store, runtime, [Document(number, "text", None) for number in range(9)], encoding="uint8")
    name, _ = refreshed(store, runtime, [Document(number, "text", None) for number in range(8)])
    (store.path / GENERATIONS / f"{name}.json").write_bytes(b"{")
    with Refresh(store, runtime) as refresh:
        assert (refresh.id_type, refresh.encoding) == ("integer", "uint8")


def test_another_encoding_is_encoded_again_and_said(store: Store, runtime: Runtime) -> None:
    """Rows of another encoding are not reused, and the report says so."""
    refreshed(store, runtime, corpus(5))
    with Refresh(store, runtime, encoding="float16") as refresh:
        refresh.add(corpus(5))
        refresh.commit()
    assert refresh.progress.encoded == 5
    assert "is stored as float32, this one as float16" in " ".join(refresh.notices)


def test_another_fingerprint_is_encoded_again_and_said(store: Store, runtime: Runtime, other_bundle: Path) -> None:
    """With another document tower nothing is reused and both fingerprints are named; what it cuts is counted."""
    refreshed(store, runtime, corpus(20))
    other = Bundle.open(other_bundle)
    documents = [Document("long", " ".join(WORDS), None), Document("short", "red", None)]
    with Refresh(store, Runtime(other, towers=("query", "document"))) as refresh:
        refresh.add(documents)
        refresh.commit()
    assert (refresh.progress.encoded, refresh.progress.truncated) == (2, 1)
    notices = " ".join(refresh.notices)
    assert runtime.bundle.fingerprint in notices
    assert other.fingerprint in notices
    assert store.manifest(store.current()).fingerprint == other.fingerprint


@pytest.mark.usefixtures("small_windows")
def test_leaving_without_commit_keeps_what_was_encoded(store: Store, runtime: Runtime) -> None:
    """Nothing is published, the lock is free again, and the next refresh encodes only what is left."""
    refreshed(store, runtime, corpus(10))
    before = store.current()
    with Refresh(store, runtime) as abandoned:
        abandoned.add(corpus(4 * WINDOW, seed=1))
    assert store.current() == before
    assert abandoned.progress.encoded > 0
    _, progress = refreshed(store, runtime, random.Random(0).sample(corpus(4 * WINDOW, seed=1), k=4 * WINDOW))
    assert progress.reused == abandoned.progress.encoded
    assert progress.encoded + progress.reused == 4 * WINDOW
    assert_stored(store, runtime, {str(one.key): one.text for one in corpus(4 * WINDOW, seed=1)})


@pytest.mark.usefixtures("small_windows")
def test_cancelling_from_another_thread(store: Store, runtime: Runtime) -> None:
    """`cancel` ends an `add` long before its documents do; what was encoded is kept."""
    enough = threading.Event()

    def many() -> Iterator[Document]:
        for number, document in enumerate(corpus(50 * WINDOW)):
            if number == 3 * WINDOW:
                enough.set()
                canceller.join()
            yield document

    with Refresh(store, runtime) as refresh:

        def cancel_when_told() -> None:
            enough.wait()
            refresh.cancel()

        canceller = threading.Thread(target=cancel_when_told)
        canceller.start()
        with pytest.raises(CancelledError):
            refresh.add(many())
    assert refresh.progress.encoded > 0
    _, progress = refreshed(store, runtime, corpus(10 * WINDOW))
    assert progress.reused == refresh.progress.encoded


@pytest.mark.usefixtures("small_windows")
def test_memory_is_bounded(store: Store, runtime: Runtime) -> None:
    """However fast documents come, never more than two windows are under way."""

    def watched() -> Iterator[Document]:
        for document in corpus(10 * WINDOW):
            progress = refresh.progress
            assert progress.received - progress.encoded <= 2 * WINDOW
            yield document

    with Refresh(store, runtime) as refresh:
        refresh.add(watched())
        refresh.commit()


def test_a_failing_source_publishes_nothing(store: Store, runtime: Runtime) -> None:
    """An error while documents are read passes through and leaves the current generation."""
    refreshed(store, runtime, corpus(3))
    before = store.current()

    def failing() -> Iterator[Document]:
        yield from corpus(5, seed=1)
        raise ConnectionError("the source is gone")

    with pytest.raises(ConnectionError):
        refreshed(store, runtime, failing())
    assert store.current() == before


def test_two_refreshes_exclude_each_other(store: Store, runtime: Runtime) -> None:
    """Also in one process: the second names the holder, and can run when the first has ended."""
    refreshed(store, runtime, corpus(3))
    with Refresh(store, runtime):
        with pytest.raises(StoreLockedError, match=r"a refresh of model \w+ \(process \d+ on"), Refresh(store, runtime):
            pass
        with pytest.raises(StoreLockedError), Refresh(Store(store.path), runtime):
            pass
    refreshed(store, runtime, corpus(4))
    assert count(store) == 4


def test_a_rollback_ends_a_refresh(store: Store, runtime: Runtime) -> None:
    """A refresh during which somebody rolls back publishes nothing; the next one encodes nothing again."""
    first, _ = refreshed(store, runtime, corpus(3))
    second, _ = refreshed(store, runtime, corpus(4))

    def rolling_back() -> Iterator[Document]:
        yield from corpus(9)
        rollback(store)

    with pytest.raises(SupersededError, match=f"{first} became current in place of {second}"):
        refreshed(store, runtime, rolling_back())
    assert (store.current(), count(store)) == (first, 3)
    _, progress = refreshed(store, runtime, corpus(9))
    assert (progress.encoded, progress.reused, count(store)) == (0, 9, 9)


def test_a_damaged_generation_is_mended(store: Store, runtime: Runtime) -> None:
    """When the current segment is damaged its rows are not reused, the report says why, and the refresh replaces it."""
    refreshed(store, runtime, corpus(20))
    [segment] = (store.path / "segments").glob("*/data.mdb")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    fresh = Store(store.path)
    with Refresh(fresh, runtime) as refresh:
        refresh.add(corpus(20))
        refresh.commit()
    assert refresh.progress.encoded == 20
    assert "is damaged" in " ".join(refresh.notices)
    assert_stored(fresh, runtime, {str(one.key): one.text for one in corpus(20)})


@pytest.mark.usefixtures("small_windows")
def test_a_wrong_row_is_not_published(store: Store, runtime: Runtime) -> None:
    """Rows that an abandoned refresh left and that were changed since are found out before anything is published, and
    the next refresh reuses none of them.
    """
    refreshed(store, runtime, corpus(3))
    before = store.current()
    with Refresh(store, runtime) as abandoned:
        abandoned.add(corpus(4 * WINDOW, seed=1))
    [vectors] = (store.path / "building").glob("*/vectors.bin")
    (-np.fromfile(vectors, dtype="<f4")).tofile(vectors)
    with pytest.raises(MismatchError, match="nothing was published: the stored embedding of document 'd"):
        refreshed(store, runtime, corpus(4 * WINDOW, seed=1))
    assert store.current() == before
    assert list((store.path / "building").iterdir()) == []
    assert len(list((store.path / "segments").iterdir())) == 1
    _, progress = refreshed(store, runtime, corpus(4 * WINDOW, seed=1))
    assert (progress.encoded, progress.reused) == (4 * WINDOW, 0)
