"""Copying a generation to another store: how a store reaches another host."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from store_cases import Deletion, Document, data_file, delta, documents, flip, forge, holds, refresh, tree

from store.compaction import compact
from store.copying import copy
from store.errors import CorruptError, FormatError, GenerationNotFoundError, NoGenerationError
from store.format import CURRENT, GENERATIONS, SEGMENTS
from store.maintenance import gc, rollback
from store.store import Store
from store.verification import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with two generations of 3 and 4 documents."""
    made = Store(tmp_path / "store")
    for count in (3, 4):
        refresh(made, documents(count))
    return made


@pytest.fixture
def there(tmp_path: Path) -> Store:
    """A store elsewhere that does not exist yet."""
    return Store(tmp_path / "far" / "away")


def test_a_copy_is_the_same_bits(store: Store, there: Store) -> None:
    """The copied generation has the name and the bytes of the original, is current, and verifies; only it is copied."""
    name, copied = copy(store, there)
    assert name == store.current() == there.current()
    assert copied == data_file(store).stat().st_size
    assert there.generations() == [name]
    assert tree(there.path) == {path: content for path, content in tree(store.path).items() if path in tree(there.path)}
    assert len(tree(there.path)) == 3
    assert holds(there, documents(4))
    assert [problem for _, problem in verify(there)] == [None, None]


def test_a_named_generation_is_copied(store: Store, there: Store) -> None:
    """Another generation than the current one can be named, and becomes the current one there."""
    first, second = store.generations()
    copy(store, there)
    assert copy(store, there, first)[0] == first == there.current()
    assert there.generations() == [first, second]
    assert holds(there, documents(3))
    assert rollback(there, second) == (first, second)


def test_a_rollback_from_a_store_that_was_built_again(store: Store, there: Store) -> None:
    """Where a copy brings a generation with a low number, going back goes to the one that was sealed last before it."""
    before = store.current()
    refresh(there, documents(5))
    name, _ = copy(there, store)
    assert rollback(store) == (name, before)


def test_a_second_copy_moves_nothing(store: Store, there: Store) -> None:
    """What is there already and sound is not copied again."""
    copy(store, there)
    before = tree(there.path)
    assert copy(store, there) == (store.current(), 0)
    assert tree(there.path) == before


def test_a_damaged_copy_is_mended(store: Store, there: Store) -> None:
    """A segment that is damaged at the destination is copied again."""
    copy(store, there)
    flip(data_file(there), 6000)
    assert copy(store, there)[1] == data_file(store).stat().st_size
    assert [problem for _, problem in verify(there)] == [None, None]


def test_an_interrupted_copy_goes_on(store: Store, there: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that was interrupted before its end has changed nothing that readers see; the next one finishes it."""
    first = store.generations()[0]
    copy(store, there, first)
    segment = data_file(store).parent.name
    half = there.path / SEGMENTS / f".{segment}.copy"
    half.mkdir()
    (half / "data.mdb").write_bytes(data_file(store).read_bytes()[:5000])
    assert copy(store, there)[1] == data_file(store).stat().st_size
    assert not half.exists()

    shutil.rmtree(there.path)
    copy(store, there, first)
    with monkeypatch.context() as interrupted:
        interrupted.setattr("store.publication.write_current", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            copy(store, there)
    assert there.current() == first
    assert holds(there, documents(3))
    assert copy(store, there) == (store.current(), 0)
    assert holds(there, documents(4))


def _interrupt(path: Path, name: str) -> None:
    raise KeyboardInterrupt


def test_current_comes_last(store: Store, there: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """CURRENT is replaced only when the segments and the manifest that it leads to are there and sound."""
    seen = []

    def look(path: Path, name: str) -> None:
        seen.append([problem for _, problem in verify(there, name)])
        (path / CURRENT).write_text(f"{name}\n")

    monkeypatch.setattr("store.publication.write_current", look)
    copy(store, there)
    assert seen == [[None]]


def test_a_damaged_source_is_refused(store: Store, there: Store) -> None:
    """A source that is damaged is not copied; the message names the source's file, and nothing is left there."""
    copy(store, there, store.generations()[0])
    before = tree(there.path)
    path = data_file(store)
    content = path.read_bytes()
    flip(path, 6000)
    with pytest.raises(CorruptError, match=str(path)):
        copy(store, there)
    path.write_bytes(content[:-4096])
    with pytest.raises(CorruptError, match=str(path)):
        copy(store, there)
    path.unlink()
    with pytest.raises(CorruptError, match=str(path)):
        copy(store, there)
    assert tree(there.path) == before
    assert len(list((there.path / SEGMENTS).iterdir())) == 1
    (store.path / GENERATIONS / f"{store.current()}.json").write_bytes(b"")
    with pytest.raises(CorruptError, match="generations"):
        copy(store, there)
    assert tree(there.path) == before


def test_a_source_that_is_collected(store: Store, there: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generation that is collected while it is copied is said to be that, not damage, and nothing is left there."""
    first, _ = store.generations()
    refresh(store, documents(5))
    copyfile = shutil.copyfile

    def copy_too_late(original: Path, target: Path) -> None:
        gc(store, keep=1)
        copyfile(original, target)

    monkeypatch.setattr("store.copying.shutil.copyfile", copy_too_late)
    with pytest.raises(GenerationNotFoundError, match=f"{store.path} no longer has .* collected meanwhile"):
        copy(store, there, first)
    assert tree(there.path) == {}
    assert copy(store, there)[0] == store.current()


def test_a_source_that_cannot_be_read(store: Store, there: Store) -> None:
    """A source that the system does not let one read is damage, and the message names its file."""
    data_file(store).unlink()
    data_file(store).mkdir()
    with pytest.raises(CorruptError, match=str(data_file(store))):
        copy(store, there)
    assert tree(there.path) == {}


def test_what_cannot_be_copied(store: Store, there: Store, tmp_path: Path) -> None:
    """A generation that is missing, or newer than this version, is refused before anything is made there."""
    with pytest.raises(GenerationNotFoundError):
        copy(store, there, "000009-00000000")
    empty = Store(tmp_path / "empty")
    empty.create()
    with pytest.raises(NoGenerationError):
        copy(empty, there)
    newer = forge(store, lambda fields: fields.update(format=2))
    with pytest.raises(FormatError):
        copy(store, there, newer)
    assert not there.path.exists()


def test_a_copy_onto_itself(store: Store) -> None:
    """Copying a store onto itself moves nothing, and makes the generation that is named the current one."""
    first = store.generations()[0]
    assert copy(store, Store(store.path), first) == (first, 0)
    assert store.current() == first
    assert holds(store, documents(3))


def test_of_a_delta_only_its_segment_is_copied(tmp_path: Path) -> None:
    """What the other store has of a generation's segments stays where it is; what comes is verified and current."""
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    refresh(here, documents(50))
    copy(here, there)
    delta(here, [Document("document-7", "other"), Deletion("document-8")])
    assert copy(here, there) == (here.current(), data_file(here).stat().st_size)
    expected = [one for one in documents(50) if one.id not in ("document-7", "document-8")]
    assert holds(there, [*expected, Document("document-7", "other")])
    compact(there, software="tests 1")
    assert holds(there, [*expected, Document("document-7", "other")])


def test_a_refresh_follows_a_copy(store: Store, there: Store) -> None:
    """A refresh of the copy reuses its rows and follows it."""
    copy(store, there)
    done = refresh(there, documents(6))
    assert done.encoded == ["text 4", "text 5"]
    assert there.manifest(done.name).parent == store.current()
    assert done.name.startswith("000003-")
