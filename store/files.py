"""Files that survive a crash: synced writes, atomic replacement, checksums, and the lock of a store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from store.errors import (
    CorruptError,
    GivenUpError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreNotFoundError,
)
from store.format import LOCK, SEGMENTS

_CHUNK = 4 << 20

# What to do about damage.
REMEDY = "copy it again from another host, roll back to a generation that verifies, or refresh"


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Makes a file's content durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file in one step: a reader, or a crash, sees the old content or the new, whole and durable."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes: what a link points at may have no end.

    Raises:
        CorruptError: it has more.
        OSError: it cannot be read.
    """
    content = b""
    with path.open("rb", buffering=0) as file:
        # Asked for `most` at once, Python would make room for as much, five times a second.
        while len(content) <= most and (part := file.read(1 << 16)):
            content += part
    if len(content) > most:
        raise CorruptError(f"{path} has over {most:,} bytes, so it is not what was written; {REMEDY}")
    return content


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """What a file must be: its size in bytes, xxh3_128 (quick, checked before it is opened) and sha256, both hex."""

    size: int
    xxh3_128: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Reads the file once."""
        quick, strong, size = xxhash.xxh3_128(), hashlib.sha256(), 0
        for chunk in _chunks(path):
            quick.update(chunk)
            strong.update(chunk)
            size += len(chunk)
        return cls(size=size, xxh3_128=quick.hexdigest(), sha256=strong.hexdigest())

    def check(self, path: Path, *, thorough: bool = False, given_up: threading.Event | None = None) -> None:
        """Compares size and xxh3_128, with `thorough` also sha256.

        Raises:
            CorruptError: the file is missing or differs.
            GivenUpError: `given_up` was set, while xxh3_128 alone was compared.
        """
        try:
            size = path.stat().st_size
            if size != self.size:
                raise CorruptError(f"{path} has {size:,} bytes, not the {self.size:,} that were written; {REMEDY}")
            found = self.of(path) if thorough else None
            quick = found.xxh3_128 if found else _xxh3_128(path, given_up)
        except OSError as error:
            raise CorruptError(f"{path} cannot be read ({error.strerror}); {REMEDY}") from error
        if quick != self.xxh3_128 or (found and found.sha256 != self.sha256):
            raise CorruptError(f"{path} is not what was written: its checksum differs; {REMEDY}")


def _chunks(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            yield buffer[:size]


def _xxh3_128(path: Path, given_up: threading.Event | None) -> str:
    quick = xxhash.xxh3_128()
    for chunk in _chunks(path):
        if given_up is not None and given_up.is_set():
            raise GivenUpError(f"{path} is not verified: the process is ending")
        quick.update(chunk)
    return quick.hexdigest()


def abandon(file: BinaryIO) -> None:
    """Closes a file without need of what is still to be written: on a full disk, writing it fails again."""
    with contextlib.suppress(OSError):
        file.close()


@contextlib.contextmanager
def reporting_full_disk(path: Path, needed: int = 1 << 16) -> Iterator[None]:
    """Turns "no space left" into an error that says how many bytes `path` needs, by default for a small file."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        free = shutil.disk_usage(path).free
        raise StoreFullError(
            f"no space left in {path}: about {needed:,} bytes are needed and {free:,} are free; "
            "free some and run again: what is encoded so far is reused, and the current generation is untouched"
        ) from error


def require_store(store: Path) -> None:
    """Raises StoreNotFoundError unless there is a store at this path."""
    if not (store / SEGMENTS).is_dir():
        raise StoreNotFoundError(f"{store} is not a store; `twinbert refresh` makes one")


# Seconds for which whoever holds a lock for moments is waited for, and after which the log says so; whoever says
# nothing is just taking the lock, or letting it go.
_PATIENCE, _QUIET, _UNSAID = 10.0, 1.0, 0.05
_LOOK_SECONDS = 0.01

_LOGGER = logging.getLogger(__name__)


def open_lock(path: Path) -> int:
    """A descriptor of a file for a lock, made where there is none; StoreError where it cannot be written."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); make the store writable for this user"
        ) from error


@contextlib.contextmanager
def locked(store: Path, purpose: str, *, file: str = LOCK, wait: bool = False, brief: bool = False) -> Iterator[None]:
    """Holds a lock of the store, which the kernel releases if this process dies.

    Args:
        store: the store's folder.
        purpose: what for, in words for those who are refused.
        file: which lock: LOCK for what writes generations, COMPACTION, or SWITCH for what replaces CURRENT.
        wait: for whoever holds it, without end.
        brief: this takes moments, so others wait and are not refused at once.

    Raises:
        StoreNotFoundError: there is no store to lock.
        StoreLockedError: somebody else holds it, and not for moments; the message says who, what for and since when.
    """
    require_store(store)
    path = store / file
    descriptor = open_lock(path)
    try:
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        else:
            _take(descriptor, store)
        os.ftruncate(descriptor, 0)  # what a holder that was killed has left
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        holder = {"purpose": purpose, "pid": os.getpid(), "host": socket.gethostname(), "since": since, "brief": brief}
        # Who holds it is only told to others. On a full disk a collection has to run all the same.
        with contextlib.suppress(OSError):
            os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        try:
            yield
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _take(descriptor: int, store: Path) -> None:
    started, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder, patience = _holder(os.pread(descriptor, 4096, 0))
            waited = time.monotonic() - started
            if waited >= patience:
                raise StoreLockedError(f"{store} is being changed by {holder}; wait for it to end") from None
            if waited >= _QUIET and not told:
                told = True
                _LOGGER.warning("%s is being changed by %s: waiting up to %g s for it to end", store, holder, patience)
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _holder(text: bytes) -> tuple[str, float]:
    """Who holds a lock, for people, and how long to wait for it."""
    if not text:
        return "another process", _UNSAID
    try:
        holder = json.loads(text)
        who = f"{holder['purpose']} (process {holder['pid']} on {holder['host']}, since {holder['since']})"
        return who, _PATIENCE if holder.get("brief") is True else 0.0
    except (ValueError, KeyError, TypeError, AttributeError):
        return "another process", 0.0
