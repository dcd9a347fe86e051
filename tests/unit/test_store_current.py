"""CURRENT: the name that it holds, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_cases import documents, refresh

from store.errors import CorruptError, GenerationNotFoundError, NoGenerationError, StoreError, StoreNotFoundError
from store.format import CURRENT
from store.maintenance import list_generations
from store.store import Store
from store.verification import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a generation."""
    made = Store(tmp_path / "store")
    refresh(made, documents(5))
    return made


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"000001-",
        b"000001-0000000\n",
        b"000001-00000000",
        b"000001-00000000\n\n",
        b"000001-0000000G\n",
        b"../../../000001-00000000\n",
        b"\x00\xff\xfe garbage",
        "٠٠٠٠٠١-00000000\n".encode(),
        b"x" * 100_000,
    ],
)
def test_a_damaged_current_is_refused(store: Store, content: bytes) -> None:
    """A CURRENT that is empty, cut off or garbage is damage; the message shows a little of it and what mends it."""
    (store.path / CURRENT).write_bytes(content)
    with pytest.raises(CorruptError, match="rollback") as refusal:
        store.current()
    assert len(str(refusal.value)) < 500


def test_a_name_cut_short_is_refused(store: Store) -> None:
    """Every proper beginning of CURRENT is refused."""
    content = (store.path / CURRENT).read_bytes()
    for size in range(len(content)):
        (store.path / CURRENT).write_bytes(content[:size])
        with pytest.raises(CorruptError):
            store.current()


def test_current_names_a_generation_that_is_missing(store: Store) -> None:
    """A CURRENT that names a generation which is not there is reported when it is opened, and by `verify`."""
    (store.path / CURRENT).write_text("000009-00000000\n")
    with pytest.raises(GenerationNotFoundError):
        store.open(store.current())
    problems = dict(verify(store))
    assert isinstance(problems["CURRENT"], StoreError)
    assert list(problems.values()).count(None) == 1


def test_a_current_that_cannot_be_read(store: Store) -> None:
    """A CURRENT that the system does not let one read is damage that `verify` reports and goes on after."""
    (store.path / CURRENT).unlink()
    (store.path / CURRENT).mkdir()
    with pytest.raises(CorruptError, match="cannot be read"):
        store.current()
    assert [(name, problem is None) for name, problem in verify(store)] == [
        ("CURRENT", False),
        (store.generations()[0], True),
    ]
    assert [one.current for one in list_generations(store)] == [False]


def test_no_store_and_no_generation(tmp_path: Path) -> None:
    """A folder that is no store, and a store that nothing was published in, are told apart."""
    store = Store(tmp_path / "store")
    for ask in (store.current, store.require):
        with pytest.raises(StoreNotFoundError, match="twinbert refresh"):
            ask()
    store.path.write_text("no folder")
    for ask in (store.current, store.require):
        with pytest.raises(StoreNotFoundError):
            ask()
    store.path.unlink()
    store.create()
    store.require()
    with pytest.raises(NoGenerationError, match="twinbert refresh"):
        store.current()
    assert store.generations() == []
