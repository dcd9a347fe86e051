"""Deltas through the refresh pipeline: what they change and reuse, and when they are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from refresh_cases import WINDOW, assert_stored, corpus, count, refreshed, texts
from store_cases import forge, weak_until

from encoder_server.documents import Deletion, Document, Rejection
from encoder_server.refresh import Refresh
from store.errors import EmptyGenerationError, IdTypeError, NoGenerationError, RowsMismatchError, StoreNotFoundError
from store.store import Store
from twinbert.bundle import Bundle
from twinbert.errors import MismatchError
from twinbert.runtime import Runtime


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("distance", [0, 3 * WINDOW])
def test_a_delta(store: Store, runtime: Runtime, distance: int) -> None:
    """Documents are added, replaced and deleted, the last change of each counts, within a window and across windows;
    the others stay; what the store has under any id is not encoded again.
    """
    refreshed(store, runtime, corpus(20))
    wanted = {str(one.key): one.text for one in corpus(20)}
    between = [Document(f"other-{one.key}", one.text, 1) for one in corpus(distance, seed=3)]
    changes: list[Document | Deletion] = [
        Document("d1", "a first text", 1),
        Deletion("d2"),
        Document("d3", "in vain", 1),
        Deletion("d4"),
        Document("new", wanted["d5"], 1),
        *between,
        Document("d1", "a last text", 2),
        Document("d2", "back again", 2),
        Deletion("d3"),
        Deletion("d4"),
        Deletion("nowhere"),
    ]
    _, progress = refreshed(store, runtime, changes, delta=True)
    wanted |= {str(one.key): one.text for one in between}
    wanted |= {"d1": "a last text", "d2": "back again", "new": texts(20)[5]}
    wanted = {key: text for key, text in wanted.items() if key not in ("d3", "d4")}
    assert_stored(store, runtime, wanted)
    assert (progress.received, progress.duplicates, progress.absent) == (10 + distance, 4, 1)
    assert progress.finished == progress.received
    assert progress.reused == 1
    if not distance:
        assert (progress.encoded, progress.deleted, progress.skipped) == (2, 3, 4)
    quality = store.manifest(store.current()).quality
    assert 0 < quality["sample"] <= 64


def test_a_delta_keeps_model_encoding_and_ids(store: Store, runtime: Runtime) -> None:
    """What a delta is not told it takes from the generation that it changes."""
    refreshed(store, runtime, [Document(number, text, 5) for number, text in enumerate(texts(9))], encoding="uint8")
    refreshed(store, runtime, [Document(3, "another text", 4), Deletion(4)], delta=True)
    manifest = store.manifest(store.current())
    assert (manifest.encoding, manifest.id_type, manifest.documents) == ("uint8", "integer", 8)
    assert (len(manifest.segments), manifest.watermark_ms) == (2, 5)
    forge(store, lambda fields: fields.update(model="0" * 64), number=2)
    with Refresh(store, runtime, delta=True) as refresh:
        refresh.add([Deletion(5)])
        refresh.commit()
    assert store.manifest(store.current()).model == "0" * 64
    assert "stays 0000" in " ".join(refresh.notices)
    assert runtime.bundle.model in " ".join(refresh.notices)


def test_a_delta_that_changes_nothing(store: Store, runtime: Runtime) -> None:
    """Nothing at all, and deletions of what is not there, leave the generation; one in which all is bad is refused."""
    name, _ = refreshed(store, runtime, corpus(5))
    assert refreshed(store, runtime, [], delta=True)[0] == name
    again, progress = refreshed(store, runtime, [Deletion("nowhere"), *corpus(3)], delta=True)
    assert (again, progress.absent, progress.reused) == (name, 1, 3)
    with pytest.raises(EmptyGenerationError, match="the first because no id"):
        refreshed(store, runtime, [Rejection("a:1", 0, "", "no id")], delta=True)
    assert store.generations() == [name]


def test_a_delta_that_does_not_fit(store: Store, runtime: Runtime, other_bundle: Path) -> None:
    """Without a store or a generation, or with another fingerprint, encoding or id type, a delta is refused at once."""
    change = [Document("a", "text", None)]
    with pytest.raises(StoreNotFoundError):
        refreshed(store, runtime, change, delta=True)
    store.create()
    with pytest.raises(NoGenerationError):
        refreshed(store, runtime, change, delta=True)
    name, _ = refreshed(store, runtime, corpus(5))
    other = Bundle.open(other_bundle)
    with pytest.raises(RowsMismatchError, match=f"{runtime.bundle.fingerprint}.*{other.fingerprint}"):
        refreshed(store, Runtime(other, towers=("query", "document")), change, delta=True)
    with pytest.raises(RowsMismatchError, match=r"float32\).*uint8"):
        refreshed(store, runtime, change, delta=True, encoding="uint8")
    with pytest.raises(IdTypeError):
        refreshed(store, runtime, change, delta=True, id_type="integer")
    assert store.generations() == [name]


def test_a_key_that_is_taken(store: Store, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document whose key is another's is left out of a delta with its place and a reason; the others are stored."""
    refreshed(store, runtime, [Document("a", "red shoe", None)])
    monkeypatch.setattr("store.keys.xxhash", weak_until(1))
    other = Store(store.path.with_name("other"))
    refreshed(other, runtime, [Document("a", "red shoe", None)])
    with Refresh(other, runtime, delta=True) as refresh:
        refresh.add([Document("bb", "blue", None), Document("b", "green", None)])
        refresh.commit()
    [rejection] = refresh.rejections
    assert (rejection.position, rejection.document_id, refresh.progress.rejected) == (1, "b", 1)
    assert "its key is that of 'a'" in rejection.reason
    assert_stored(other, runtime, {"a": "red shoe", "bb": "blue"})


@pytest.mark.usefixtures("small_windows")
def test_an_abandoned_delta_is_taken_up(store: Store, runtime: Runtime) -> None:
    """What a delta encoded before it was left is reused by the next one; a wrong row among it is not published."""
    refreshed(store, runtime, corpus(3))
    with Refresh(store, runtime, delta=True) as abandoned:
        abandoned.add(corpus(3 * WINDOW, seed=1))
    assert abandoned.progress.encoded > 0
    _, progress = refreshed(store, runtime, corpus(3 * WINDOW, seed=1), delta=True)
    assert progress.reused == abandoned.progress.encoded
    assert count(store) == 3 * WINDOW
    before = store.current()
    with Refresh(store, runtime, delta=True) as abandoned:
        abandoned.add(corpus(3 * WINDOW, seed=2))
    [vectors] = (store.path / "building").glob("*/vectors.bin")
    (-np.fromfile(vectors, dtype="<f4")).tofile(vectors)
    with pytest.raises(MismatchError, match="nothing was published"):
        refreshed(store, runtime, corpus(3 * WINDOW, seed=2), delta=True)
    assert store.current() == before
