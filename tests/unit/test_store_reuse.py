"""What a refresh encodes again, and what it takes from a generation or from an interrupted build."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from store_cases import (
    DIMENSION,
    Document,
    add,
    batch_of,
    builds,
    documents,
    embeddings,
    holds,
    interrupt,
    read,
    refresh,
    writer,
)

from store.errors import StoreError
from store.format import SEGMENTS
from store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that does not exist yet."""
    return Store(tmp_path / "store")


def test_unchanged_texts_are_reused(store: Store) -> None:
    """Only texts that changed are encoded, whatever ids they have and whatever order they come in."""
    refresh(store, documents(30))
    chosen = [Document(f"other-{i}", f"text {i}") for i in range(29, 4, -1)] + documents(3, text="changed")
    assert refresh(store, chosen).encoded == ["changed 0", "changed 1", "changed 2"]
    assert holds(store, chosen)


def test_a_text_that_comes_again_is_encoded_once(store: Store) -> None:
    """Once it is durable a row of this very refresh is found again, whichever sync it came with, and shared."""
    chosen = [Document(f"{copy}-{i}", f"text {i}") for copy in range(3) for i in range(40)]
    with writer(store) as into:
        for first in range(0, 40, 8):
            assert len(add(into, chosen[first : first + 8])) == 8
            into.sync()
        assert add(into, chosen) == []
        with into.seal():
            pass
        into.publish({})
    assert holds(store, chosen)
    assert refresh(store, chosen).encoded == []


@pytest.mark.parametrize(
    "changed",
    [{"fingerprint": "0" * 64}, {"encoding": "float16"}, {"encoding": "uint8"}],
    ids=["fingerprint", "float16", "uint8"],
)
def test_rows_of_another_kind_are_not_reused(store: Store, changed: dict[str, Any]) -> None:
    """Rows made under another fingerprint or encoding are neither taken from a generation nor from a build."""
    refresh(store, documents(9))
    interrupt(store, documents(20))
    assert len(refresh(store, documents(20), **changed).encoded) == 20


def test_a_fixed_step_is_another_encoding(store: Store) -> None:
    """Uint8 rows with the fixed step and with a scale are not mixed up; for other encodings the tower's end is one."""
    refresh(store, documents(9), encoding="uint8")
    assert len(refresh(store, documents(9), encoding="uint8", fixed_step=True).encoded) == 9
    assert refresh(store, documents(9), encoding="uint8", fixed_step=True).encoded == []
    refresh(store, documents(9), encoding="float32")
    assert refresh(store, documents(9), encoding="float32", fixed_step=True).encoded == []


def test_another_model_keeps_the_rows(store: Store) -> None:
    """A new model with the same fingerprint reuses every row, and the manifest names it."""
    refresh(store, documents(9))
    assert refresh(store, documents(9), model="0" * 64).encoded == []
    assert store.manifest(store.current()).model == "0" * 64


@pytest.mark.parametrize("seed", range(5))
def test_an_interrupted_build_is_reused(store: Store, seed: int) -> None:
    """Whatever the next input and its order, no text that an interrupted refresh encoded is encoded again."""
    chance = random.Random(seed)
    seen: set[str] = set()
    for _ in range(3):
        encoded = interrupt(store, chance.sample(documents(60), 25))
        assert not seen & set(encoded)
        seen |= set(encoded)
    chosen = chance.sample(documents(60), 40)
    encoded = refresh(store, chosen).encoded
    assert not seen & set(encoded)
    assert holds(store, chosen)
    assert builds(store) == []


@pytest.mark.parametrize("cut_off", ["vectors.bin", "entries.bin"])
@pytest.mark.parametrize("size", [0, 1, 19, 63, 64, 65, 127, 200])
def test_a_build_that_lost_its_end(store: Store, cut_off: str, size: int) -> None:
    """Of a build whose files end anywhere, the whole rows that are vouched for are reused, and no others."""
    interrupt(store, documents(8))
    (build,) = builds(store)
    path = build / cut_off
    row_bytes = DIMENSION * 4 if cut_off == "vectors.bin" else 20
    path.write_bytes(path.read_bytes()[:size])
    whole = min(8, size // row_bytes)
    assert refresh(store, documents(8)).encoded == [f"text {i}" for i in range(whole, 8)]
    assert holds(store, documents(8))


def test_rows_that_were_not_synced(store: Store) -> None:
    """Rows that no entry vouches for are not trusted: they are encoded again."""
    interrupt(store, documents(3))
    (build,) = builds(store)
    with (build / "vectors.bin").open("ab") as file:
        file.write(b"\xff" * (DIMENSION * 4 * 5))
    assert refresh(store, documents(8)).encoded == [f"text {i}" for i in range(3, 8)]
    assert holds(store, documents(8))


def test_a_draft_that_was_left(store: Store) -> None:
    """A segment half-written when its process died is in nobody's way."""
    interrupt(store, documents(8))
    (build,) = builds(store)
    (build / "segment").mkdir()
    (build / "segment" / "data.mdb").write_bytes(b"half")
    (build / "ordered.bin").write_bytes(b"half")
    refresh(store, documents(8)[::-1])
    assert holds(store, documents(8)[::-1])
    assert builds(store) == []
    assert len(list((store.path / SEGMENTS).iterdir())) == 1


def test_another_dimension_is_another_build(store: Store) -> None:
    """A model of another dimension reuses nothing, whatever its fingerprint says."""
    refresh(store, documents(4))
    with writer(store, dimension=8) as into:
        assert not into.add_known(batch_of(documents(4))).any()
        into.add(batch_of(documents(4)), embeddings([document.text for document in documents(4)], 8))
        with into.seal():
            pass
        into.publish({})
    assert read(store, ["document-1"]).shape == (1, 8)


def test_a_build_with_too_many_rows(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that interrupted refreshes filled beyond what row numbers can tell apart is refused, by its folder."""
    interrupt(store, documents(9))
    monkeypatch.setattr("store.building.TOMBSTONE", 10)
    with pytest.raises(StoreError, match=str(builds(store)[0])):
        refresh(store, documents(12))
