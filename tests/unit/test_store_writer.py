"""A refresh as the store sees it: what is published, and what is refused."""

from __future__ import annotations

import contextlib
import errno
import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from store_cases import (
    SOFTWARE,
    Document,
    add,
    batch_of,
    builds,
    data_file,
    delta,
    documents,
    embeddings,
    flip,
    holds,
    interrupt,
    read,
    refresh,
    tree,
    weak_until,
    writer,
)

from store.adoption import adopt
from store.errors import CorruptError, IdTypeError, NoGenerationError, StoreFullError, VectorsError
from store.files import replace_file
from store.format import BUILDING, CURRENT, GENERATIONS
from store.lineage import latest_first, predecessors
from store.maintenance import rollback
from store.publication import switching
from store.store import Store
from store.writer import digests


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "store")


def published(store: Store) -> dict[str, bytes]:
    """Every file of the store but those of builds."""
    return {path: content for path, content in tree(store.path).items() if not path.startswith(BUILDING)}


def test_nothing_is_published_unasked(store: Store) -> None:
    """Adding, sealing and leaving publish nothing: readers see what they saw before."""
    with writer(store) as into:
        add(into, documents(5))
        with into.seal():
            pass
    with pytest.raises(NoGenerationError):
        store.current()
    assert store.generations() == []
    refresh(store, documents(5))
    before = tree(store.path)
    with writer(store) as into:
        add(into, documents(9, text="changed"))
        with pytest.raises(KeyError), into.seal():
            raise KeyError
    assert published(store) == before
    assert holds(store, documents(5))


def test_sealing_in_vain_leaves_no_segment(store: Store) -> None:
    """A segment that was sealed and not published is removed, whatever stopped it, also where CURRENT is damaged."""
    refresh(store, documents(5))
    for _ in range(2):
        before = published(store)
        for sample_differs in (True, False):
            with contextlib.suppress(KeyError), writer(store) as into:
                add(into, documents(9, text="changed"))
                with into.seal():
                    if sample_differs:
                        raise KeyError
        assert published(store) == before
        damage_current(store)


def test_publishing_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CURRENT cannot be replaced, neither manifest nor segment stays; the next refresh encodes nothing again."""
    refresh(store, documents(5))
    before = published(store)
    with monkeypatch.context() as failing:
        failing.setattr("store.manifest.replace_file", replacing_no_current)
        with pytest.raises(StoreFullError):
            refresh(store, documents(9))
    assert published(store) == before
    assert refresh(store, documents(9)).encoded == []
    assert holds(store, documents(9))


def replacing_no_current(path: Path, content: bytes) -> None:
    """Replaces a file, unless it is CURRENT, for which there is no space."""
    if path.name == CURRENT:
        raise OSError(errno.ENOSPC, "No space left on device")
    replace_file(path, content)


def test_publishing_that_fails_too_late(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once CURRENT names a generation, it stays, whatever fails then."""
    refresh(store, documents(5))

    def interrupted(path: Path, content: bytes) -> None:
        replace_file(path, content)
        if path.name == CURRENT:
            raise KeyboardInterrupt

    with monkeypatch.context() as failing:
        failing.setattr("store.manifest.replace_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            refresh(store, documents(9))
    assert len(store.generations()) == 2
    assert holds(store, documents(9))


def test_a_build_that_is_discarded(store: Store) -> None:
    """Of a build that was discarded the next refresh reuses nothing, nor of what was there before."""
    interrupt(store, documents(5))
    with writer(store) as into:
        add(into, documents(9))
        with into.seal():
            into.discard()
    assert published(store) == {}
    assert builds(store) == []
    assert len(refresh(store, documents(9)).encoded) == 9
    assert holds(store, documents(9))


def test_publishing_needs_a_sealed_segment(store: Store) -> None:
    """What was not sealed cannot be published."""
    refresh(store, documents(5))
    before = store.current()
    with writer(store) as into:
        add(into, documents(9))
        with pytest.raises(ValueError, match="seal"):
            into.publish({})
    assert store.current() == before


def test_generations_follow_each_other(store: Store) -> None:
    """Each generation is numbered one higher, names its parent, and says when it was made."""
    begun_ms = time.time_ns() // 1_000_000
    names = [refresh(store, documents(count)).name for count in (3, 4, 5)]
    assert store.generations() == names
    assert [name[:7] for name in names] == ["000001-", "000002-", "000003-"]
    manifests = [store.manifest(name) for name in names]
    assert [manifest.parent for manifest in manifests] == [None, *names[:2]]
    assert [manifest.watermark_ms for manifest in manifests] == [1_002, 1_003, 1_004]
    times = [begun_ms, *(manifest.created_ms for manifest in manifests), time.time_ns() // 1_000_000]
    assert times == sorted(times)
    for name, count in zip(names, (3, 4, 5), strict=True):
        assert holds(store, documents(count), name)


def test_generations_follow_each_other_whatever_the_clock_says(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sealed where the clock is behind is not taken for what came before it: by a full refresh, by a delta and
    by an adoption, also after a rollback.
    """
    first = refresh(store, documents(3)).name
    monkeypatch.setattr("store.lineage.time", SimpleNamespace(time_ns=lambda: 0))
    refresh(store, documents(4))
    last = delta(store, [Document("late", "late")]).name
    rollback(store, first)
    refresh(store, documents(5))
    adopt(store, model="0" * 64, software=SOFTWARE, judge=lambda _: {})
    assert latest_first(store.path) == store.generations()[::-1]
    times = [store.manifest(name).created_ms for name in store.generations()]
    assert times == list(range(times[0], times[0] + 5))
    assert list(predecessors(store.path, store.current()))[1:] == [last, store.generations()[1], first]


def test_a_rollback_to_what_is_withdrawn(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation that could not be published is not removed while somebody replaces CURRENT, who may go to it."""
    refresh(store, documents(3))
    with monkeypatch.context() as failing, contextlib.ExitStack() as somebody:
        failing.setattr("store.files._PATIENCE", 0.0)
        failing.setattr("store.manifest.replace_file", replacing_no_current)
        with writer(store) as into:
            add(into, documents(9))
            with into.seal():
                pass
            with pytest.raises(StoreFullError):
                into.publish({})
            somebody.enter_context(switching(store.path, "a rollback"))
    first, second = store.generations()
    assert rollback(store, second) == (first, second)
    assert holds(store, documents(9))


def test_a_number_is_not_used_twice(store: Store) -> None:
    """After a return to an earlier generation the next one follows it, under a number that nobody had."""
    first, second = (refresh(store, documents(count)).name for count in (3, 4))
    (store.path / CURRENT).write_text(f"{first}\n")
    third = refresh(store, documents(5)).name
    assert third.startswith("000003-")
    assert store.manifest(third).parent == first
    assert store.generations() == [first, second, third]


def damage_segment(store: Store) -> None:
    """Flips a bit of the current segment."""
    flip(data_file(store), 5000)


def damage_manifest(store: Store) -> None:
    """Cuts the current manifest off."""
    path = store.path / GENERATIONS / f"{store.current()}.json"
    path.write_bytes(path.read_bytes()[:50])


def remove_manifest(store: Store) -> None:
    """Removes the current manifest."""
    (store.path / GENERATIONS / f"{store.current()}.json").unlink()


def damage_current(store: Store) -> None:
    """Empties CURRENT."""
    (store.path / CURRENT).write_text("")


@pytest.mark.parametrize("damage", [damage_segment, damage_manifest, remove_manifest, damage_current])
def test_a_refresh_mends_a_damaged_store(store: Store, damage: Any) -> None:
    """A refresh over a damaged current generation says so, reuses nothing of it, and publishes a sound one. It follows
    the damaged one as long as that one's manifest is sound.
    """
    before = refresh(store, documents(9)).name
    damage(store)
    with writer(store) as into:
        assert isinstance(into.damage, CorruptError)
        assert len(add(into, documents(9))) == 9
        with into.seal():
            pass
        into.publish({})
    assert holds(store, documents(9))
    assert store.manifest(store.current()).parent == (before if damage is damage_segment else None)
    with writer(store) as into:
        assert into.damage is None


def test_a_damaged_segment_keeps_ids_and_seed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh over a damaged segment begins with the store's seed, and refuses ids of the other type."""
    with monkeypatch.context() as patched:
        patched.setattr("store.keys.xxhash", weak_until(2))
        refresh(store, documents(9))
    damage_segment(store)
    with pytest.raises(IdTypeError, match="keeps its id type"), writer(store, id_type="integer"):
        pass
    refresh(store, documents(9))
    assert store.manifest(store.current()).seed == 2


@pytest.mark.parametrize(("first", "second"), [("string", "integer"), ("integer", "string")])
def test_a_store_keeps_its_id_type(store: Store, first: str, second: str) -> None:
    """A refresh with ids of the other type is refused before it begins, and changes nothing."""
    refresh(store, [Document("5" if first == "string" else 5, "text")], id_type=first)
    before = tree(store.path)
    with pytest.raises(IdTypeError, match="keeps its id type"), writer(store, id_type=second):
        pass
    assert tree(store.path) == before


@pytest.mark.parametrize(
    ("encoding", "fixed_step", "value"),
    [
        ("float32", False, math.nan),
        ("float32", False, math.inf),
        ("float16", False, 70_000.0),
        ("uint8", True, 1.001),
        ("uint8", False, -math.inf),
    ],
)
def test_embeddings_that_do_not_fit(store: Store, encoding: str, fixed_step: bool, value: float) -> None:
    """Embeddings that the encoding cannot hold are refused whole, and what came before them can be published."""
    chosen = documents(6)
    with writer(store, encoding=encoding, fixed_step=fixed_step) as into:
        add(into, chosen[:3])
        vectors_ND = embeddings([document.text for document in chosen[3:]])
        vectors_ND[1, 2] = value
        with pytest.raises(VectorsError):
            into.add(batch_of(chosen[3:]), vectors_ND)
        with into.seal():
            pass
        into.publish({})
    assert store.manifest(store.current()).documents == 3
    read(store, [document.id for document in chosen[:3]])


def test_embeddings_of_another_dimension(store: Store) -> None:
    """Embeddings of another length than the store's are refused."""
    with writer(store) as into, pytest.raises(VectorsError, match=r"\[N, 16\]"):
        into.add(batch_of(documents(2)), embeddings(["a", "b"], 15))


def test_readers_keep_what_they_opened(store: Store) -> None:
    """A generation that is open reads the same documents after another one was published."""
    refresh(store, documents(5))
    generation = store.open(store.current())
    refresh(store, documents(5, text="changed"))
    found = generation.read(generation.locate(["document-4"]))
    np.testing.assert_array_equal(found, embeddings(["text 4"]))
    generation.close()


def test_digests_are_blake2b() -> None:
    """A text's digest is BLAKE2b of its UTF-8, 16 bytes: the vectors of the reference implementation."""
    assert (
        digests(["", "abc"]).tobytes().hex() == "cae66941d9efbd404e4d88758ea67670" + "cf4ab791c62b8d2b2109c90275287816"
    )
    assert len(digests([])) == 0
