"""What a generation lacks of the one before, and what it knows of its documents, whatever segments they are in."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from store.adoption import adopt
from store.comparison import FEWEST_DOCUMENTS, lost_share, sampled_ids
from store.errors import IdTypeError, NoGenerationError, StoreFullError, StoreLockedError
from store.files import locked
from store.reader import Generation
from store.store import Store
from tests.unit.store_cases import Deletion, Document, delta, documents, refresh, tree

COUNT = 4 * FEWEST_DOCUMENTS

Opened = Callable[[str], Generation]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    refresh(store, documents(COUNT))
    return store


@pytest.fixture
def opened(store: Store) -> Iterator[Opened]:
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(contextlib.closing(store.open(name)))


def gone(count: int, *, first: int) -> list[Deletion]:
    return [Deletion(one.id) for one in documents(count, first=first)]


def test_the_share_of_documents_that_are_gone(store: Store, opened: Opened) -> None:
    """Counted by id, whatever was added instead, under another seed and encoding or in other segments."""
    first = opened(store.current())
    fewer = documents(COUNT // 4, first=COUNT // 2)
    other = opened(refresh(store, [*fewer, *documents(900, first=5000)], encoding="float16").name)
    assert lost_share(first, first) == 0
    assert lost_share(first, other) == 0.75
    assert lost_share(other, first) == 1 - 100 / 1000
    changes: list[Document | Deletion] = [*documents(50, first=10_000), *gone(60, first=5000)]
    over = opened(delta(store, changes, encoding="float16").name)
    assert lost_share(other, over) == 60 / 1000
    assert lost_share(over, other) == 50 / 990


def test_a_large_generation_is_sampled_alike_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of a sample is near that of all, and the same again."""
    monkeypatch.setattr("store.comparison._SAMPLE", 1000)
    store = Store(tmp_path / "large")
    with contextlib.ExitStack() as stack:
        before, after = (
            stack.enter_context(contextlib.closing(store.open(refresh(store, documents(count)).name)))
            for count in (5000, 4000)
        )
        share = lost_share(before, after)
        assert share == lost_share(before, after)
        assert abs(share - 0.2) < 0.05


def test_small_generations_say_nothing_and_types_do_not_mix(tmp_path: Path, opened: Opened, store: Store) -> None:
    """Below a hundred documents nothing is lost; documents of another id type cannot be compared."""
    few = Store(tmp_path / "few")
    names = [refresh(few, documents(FEWEST_DOCUMENTS - 1)).name, refresh(few, documents(5, first=500)).name]
    with contextlib.closing(few.open(names[0])) as small, contextlib.closing(few.open(names[1])) as other:
        assert lost_share(small, other) == 0
    numbers = Store(tmp_path / "numbers")
    name = refresh(numbers, [Document(number, f"text {number}") for number in range(200)], id_type="integer").name
    with contextlib.closing(numbers.open(name)) as integers:
        assert lost_share(integers, integers) == 0
        with pytest.raises(IdTypeError):
            lost_share(opened(store.current()), integers)


def test_only_documents_that_are_there_are_sampled(store: Store, opened: Opened) -> None:
    """Each of them once at most: none that a delta replaced or deleted."""
    over = opened(delta(store, [*documents(100, text="changed"), *gone(100, first=200)]).name)
    sample: list[Any] = sampled_ids(over, 10_000, np.random.default_rng(0))
    assert sorted(sample) == sorted(one.id for one in [*documents(200), *documents(100, first=300)])


def test_times_and_tombstones_of_a_stack(store: Store, opened: Opened) -> None:
    """Each document has the time of its newest row; an id is deleted only while a tombstone is the last word on it."""
    delta(store, [Document("document-1", "changed", 77), *gone(2, first=2), Deletion("never")])
    generation = opened(delta(store, [Document("document-3", "back", 88)]).name)
    ids = ["document-0", "document-1", "document-3", "document-399", "document-2", "nowhere"]
    located = generation.locate(ids)
    assert located.found.tolist() == [True] * 4 + [False] * 2
    assert generation.times(located).tolist() == [1000, 77, 88, 1399]
    assert generation.deleted(ids).tolist() == [False, False, False, False, True, False]
    whole = opened(refresh(store, documents(COUNT)).name)
    assert not whole.deleted(ids).any()
    assert whole.times(whole.locate(["document-7"])).tolist() == [1007]


def test_adopting_publishes_the_same_segments(store: Store, opened: Opened) -> None:
    """The new generation differs in model, parent and what was measured; nothing is written but two small files."""
    before, files = store.manifest(store.current()), set(tree(store.path))
    adopted = adopt(store, model="ab" * 32, software="tests 2", judge=lambda current: {"seen": current.name})
    assert store.current() == adopted.name
    assert (adopted.model, adopted.parent, adopted.number) == ("ab" * 32, before.name, before.number + 1)
    assert (adopted.quality, adopted.writer) == ({"seen": before.name}, "tests 2")
    assert (adopted.segments, adopted.fingerprint) == (before.segments, before.fingerprint)
    assert set(tree(store.path)) - files == {f"generations/{adopted.name}.json"}
    assert opened(adopted.name).locate(["document-7"]).found.all()


def test_adopting_what_must_not_be_changes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge that refuses, a store that somebody changes, a full disk, and a store without a generation."""
    before = tree(store.path)

    def refuse(_: object) -> dict[str, Any]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        adopt(store, model="ab" * 32, software="tests 2", judge=refuse)
    with locked(store.path, "a test"), pytest.raises(StoreLockedError):
        adopt(store, model="ab" * 32, software="tests 2", judge=lambda _: {})
    assert tree(store.path) == before

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("store.publication.write_current", full)
    with pytest.raises(StoreFullError, match="no space left in"):
        adopt(store, model="ab" * 32, software="tests 2", judge=lambda _: {})
    assert tree(store.path) == before
    empty = Store(tmp_path / "empty")
    empty.create()
    with pytest.raises(NoGenerationError):
        adopt(empty, model="ab" * 32, software="tests 2", judge=lambda _: {})
