"""Locks, replacements and checksums of a store's files."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash
from store_cases import delta, delta_writer, documents, flip, holds, refresh, writer

from store.copying import copy
from store.errors import CorruptError, StoreError, StoreLockedError, StoreNotFoundError
from store.files import FileEntry, locked, replace_file
from store.format import COMPACTION, LOCK, SWITCH
from store.maintenance import gc, pin, rollback
from store.manifest import Manifest
from store.store import Store

HOLD = """
import sys
from pathlib import Path
from store_cases import add, documents, writer
from store.store import Store

with writer(Store(Path(sys.argv[1])), model="abcdef0123456789") as into:
    add(into, documents(9))
    into.sync()
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a generation."""
    made = Store(tmp_path / "store")
    refresh(made, documents(5))
    return made


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of a refresh, which goes on until its standard input is closed."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, store.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{root}:{Path(__file__).parent}"},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_one_writer_at_a_time(store: Store, holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """While a process refreshes, nobody else writes to the store; the message names its purpose, process and start. Who
    rolls back does not wait for it.
    """
    elsewhere = Store(tmp_path / "elsewhere")
    refresh(elsewhere, documents(3))
    for change in (
        lambda: refresh(store, documents(6)),
        lambda: gc(store, keep=1),
        lambda: copy(elsewhere, store),
    ):
        with pytest.raises(StoreLockedError) as refusal:
            change()
        for part in ("a refresh of model abcdef012345", f"process {holder.pid} ", "since 2", str(store.path)):
            assert part in str(refusal.value)
    assert holds(store, documents(5))
    assert rollback(store, store.current()) == (store.current(), store.current())


def test_a_finished_writer_lets_go(store: Store, holder: subprocess.Popen[str]) -> None:
    """When the other process ends, the store can be changed, and what it encoded is reused."""
    holder.communicate()
    assert holder.returncode == 0
    assert refresh(store, documents(9)).encoded == []


def test_a_killed_writer_lets_go(store: Store, holder: subprocess.Popen[str]) -> None:
    """The lock of a process that was killed is free, although its text still names the process."""
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert f'"pid": {holder.pid}' in (store.path / LOCK).read_text()
    assert refresh(store, documents(9)).encoded == []
    assert holds(store, documents(9))
    assert (store.path / LOCK).read_text() == ""


class Held(Store):
    """A store that stops in the middle of what is done to it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.holding, self.release = threading.Event(), threading.Event()

    def manifest(self, name: str) -> Manifest:
        """Waits to be released."""
        self.holding.set()
        self.release.wait()
        return super().manifest(name)


@pytest.mark.parametrize("change", [lambda held, _: gc(held, keep=9), pin])
def test_a_delta_waits_for_what_takes_moments(
    store: Store,
    change: Callable[[Store, str], object],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A delta beside a collection or a pin waits for its end, says so after a while, and is published."""
    refresh(store, documents(6))
    held, sleep = Held(store.path), time.sleep
    monkeypatch.setattr("store.files._QUIET", 0.0)
    monkeypatch.setattr("store.files.time.sleep", lambda seconds: (held.release.set(), sleep(seconds)))
    other = threading.Thread(target=change, args=(held, store.current()))
    other.start()
    held.holding.wait()
    try:
        name = delta(store, documents(1, text="changed")).name
    finally:
        held.release.set()
        other.join()
    assert store.current() == name
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert f"process {os.getpid()} " in record.getMessage()
    assert "waiting up to 10 s" in record.getMessage()


def test_a_second_writer_in_one_process(store: Store) -> None:
    """A second writer is refused in the same process too, and its refusal leaves the first one whole."""
    with writer(store) as first:
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()} "), writer(Store(store.path)):
            pass
        with pytest.raises(StoreLockedError):
            gc(store, keep=1)
        first.sync()
    with writer(store):
        pass


@pytest.mark.parametrize("text", ["", "garbage", "[]", "{}", '{"purpose": 1}', "\x00" * 5000])
def test_a_lock_with_strange_text(store: Store, text: str) -> None:
    """A lock whose text says nothing is a lock all the same."""
    with locked(store.path, "a test"):
        (store.path / LOCK).write_text(text)
        with pytest.raises(StoreLockedError, match="another process"), locked(store.path, "another test"):
            pass


def test_a_lock_is_released_by_an_error(store: Store) -> None:
    """Leaving with an error releases the lock, and nothing tells of its holder any more."""
    with pytest.raises(KeyError), locked(store.path, "a test"):
        raise KeyError
    assert (store.path / LOCK).read_bytes() == b""
    with locked(store.path, "another test"):
        pass


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    """A path that cannot be a store is refused with a message that says so."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be made a store"):
        refresh(Store(tmp_path / "file"), documents(1))
    store = Store(tmp_path / "store")
    store.create()
    (store.path / LOCK).unlink()
    (store.path / LOCK).mkdir()
    with pytest.raises(StoreError, match="cannot be written"), locked(store.path, "a test"):
        pass
    with pytest.raises(StoreError, match="cannot be written"):
        store.create()


def test_what_publishing_needs_is_there_at_the_beginning(store: Store) -> None:
    """A store's locks are made with it, for their owner; a delta that could not take the one that publishing takes, as
    where another user made it, is refused before anything is encoded.
    """
    assert {LOCK, SWITCH, COMPACTION} <= {path.name for path in store.path.iterdir()}
    (store.path / SWITCH).unlink()
    (store.path / SWITCH).mkdir()
    with pytest.raises(StoreError, match=f"{SWITCH} cannot be written"), delta_writer(store):
        pass


def test_no_store_to_lock(tmp_path: Path) -> None:
    """Where there is no store, the message says that, and nothing is made."""
    for path in (tmp_path / "nowhere", tmp_path):
        for change in (lambda path: rollback(Store(path)), lambda path: gc(Store(path), keep=1)):
            with pytest.raises(StoreNotFoundError, match="is not a store"):
                change(path)
    assert list(tmp_path.iterdir()) == []


def test_replacing_a_file(tmp_path: Path) -> None:
    """A file is replaced whole, and nothing else stays in its folder."""
    path = tmp_path / "CURRENT"
    for content in (b"first", b"second, and longer", b""):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_replacement_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the new content cannot be made durable, the old file stays, and nothing else."""
    path = tmp_path / "CURRENT"
    replace_file(path, b"old")

    def failing(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("store.files.os.fsync", failing)
    with pytest.raises(OSError, match="Input/output"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 1, 4096, (4 << 20) - 1, 4 << 20, (4 << 20) + 1])
def test_checksums_of_a_file(tmp_path: Path, size: int) -> None:
    """A file's entry has its size and both checksums, however it falls into chunks, and accepts only that content."""
    path = tmp_path / "data"
    content = bytes(range(256)) * (size // 256 + 1)
    path.write_bytes(content[:size])
    entry = FileEntry.of(path)
    assert entry.size == size
    assert entry.sha256 == hashlib.sha256(content[:size]).hexdigest()
    assert entry.xxh3_128 == xxhash.xxh3_128(content[:size]).hexdigest()
    for thorough in (False, True):
        entry.check(path, thorough=thorough)
        if size:
            flip(path, size - 1)
            with pytest.raises(CorruptError, match="checksum differs"):
                entry.check(path, thorough=thorough)
            flip(path, size - 1)
    path.write_bytes(content[: size + 1])
    with pytest.raises(CorruptError, match=f"has {size + 1:,} bytes"):
        entry.check(path)
    path.unlink()
    with pytest.raises(CorruptError, match="cannot be read"):
        entry.check(path)


def test_a_folder_with_other_things_is_not_made_a_store(tmp_path: Path) -> None:
    """A bundle, say, named by mistake: nothing is written into it."""
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(StoreError, match="is not a store and not empty"):
        Store(tmp_path).create()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle.json"]
