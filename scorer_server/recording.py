"""Files of bounded size that a server writes beside its work: whoever offers something to record never waits."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import queue
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from prometheus_client import Counter

from twinbert.errors import UsageError
from twinbert.recorded import older
from twinbert.serving.log import event

Lines = Iterable[Mapping[str, Any]]

# Offers that may wait for the writing thread. A disk that hangs must not fill the memory.
_WAITING = 64
# What the writing thread has to end when the server stops.
_LAST_SECONDS = 5.0
# Only the owner reads and writes.
_OWNERS = 0o600


class Recorder:
    """Appends JSON Lines to a file in a thread of its own. A full file becomes FILE.1, in place of the one before it; a
    file that somebody has moved or removed is made again.

    Only the owner may read the files, also those that were there: they say what users asked for.

    Args:
        path: the file; what it holds already stays.
        limit: bytes of FILE and FILE.1 together.
        written: counts lines.
        dropped: counts offers that were not recorded, because the disk was too slow, or failed.

    Raises:
        UsageError: the file cannot be written, or another server writes it.
    """

    def __init__(self, path: Path, limit: int, written: Counter, dropped: Counter) -> None:
        self._path, self._limit = path, limit // 2
        self._written, self._dropped = written, dropped
        try:
            self._file = self._open()
            with contextlib.suppress(FileNotFoundError):
                older(path).chmod(_OWNERS)
        except OSError as error:
            why = "another server writes it" if isinstance(error, BlockingIOError) else error.strerror
            raise UsageError(f"{path} cannot be recorded to: {why}; name another file") from error
        self._failing = False
        self._offers: queue.Queue[Callable[[], Lines] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="record", daemon=True)
        self._thread.start()

    def offer(self, make: Callable[[], Lines]) -> None:
        """Has the lines that `make` gives recorded; it is called in the writing thread."""
        try:
            self._offers.put_nowait(make)
        except queue.Full:
            self._dropped.inc()

    def close(self) -> None:
        """Writes what was offered, and ends the thread; a disk that hangs is not waited for."""
        with contextlib.suppress(queue.Full):
            self._offers.put(None, timeout=_LAST_SECONDS)
        self._thread.join(_LAST_SECONDS)
        if not self._thread.is_alive():
            self._file.close()

    def _run(self) -> None:
        while make := self._offers.get():
            try:
                self._record(make())
                self._failing = False
            except Exception as error:  # noqa: BLE001  the edge of a thread: no record is worth a request
                self._dropped.inc()
                if not self._failing:
                    bug = None if isinstance(error, OSError) else error
                    event("recording_failed", level=logging.ERROR, error=bug, file=str(self._path), why=str(error))
                self._failing = True

    def _record(self, lines: Lines) -> None:
        for line in lines:
            content = json.dumps(line, ensure_ascii=False).encode(errors="replace") + b"\n"
            if not self._is_open():
                self._reopen()
            if self._file.tell() + len(content) > self._limit:
                with contextlib.suppress(FileNotFoundError):  # somebody was quicker
                    self._path.replace(older(self._path))
                self._reopen()
            self._file.write(content)
            self._written.inc()

    def _is_open(self) -> bool:
        """Whether the open file is the one at the path: it may have been moved since, or the next one not be opened."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def _reopen(self) -> None:
        before, self._file = self._file, self._open()
        before.close()

    def _open(self) -> BinaryIO:
        # Unbuffered, so that a reader sees whole lines and a write that fails is known at once.
        file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, _OWNERS), "ab", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # and not /dev/null
                os.fchmod(file.fileno(), _OWNERS)
        except OSError:
            file.close()
            raise
        return file
