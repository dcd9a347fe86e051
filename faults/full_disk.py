"""A disk that fills up at each write of a refresh, a delta or a compaction: a small file system with ever one page more
of room, and a limit on the size of files that is ever one page higher.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.changes import Action, Place, place
from faults.corpora import require_no_halves
from faults.fault import Attempt, Fault, NotRunError, Tally, require
from faults.forking import Forks, forks
from store.store import Store

_UNSHARE = ("unshare", "--map-root-user", "--mount")
_MOUNT = ("sh", "-c", 'mount -t tmpfs -o size=8m none "$0" && exec "$@"')
_PAGE = 4096
_PAGES = 128  # more than any of the three needs
_WAYS = 2


@contextmanager
def _prepared(folder: Path, bundle: Path) -> Iterator[Attempt]:
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode:
        raise NotRunError("this system does not let its users mount file systems")
    with forks() as outside, forks(*_UNSHARE, *_MOUNT, str(disk)) as inside:
        made = place(folder, bundle, disk / "store", outside)
        seen = Path(f"/proc/{inside.process.pid}/root{disk}")  # the file system that only the other process has mounted
        yield _Filling(inside, made, seen).attempt


class _Filling:
    def __init__(self, forking: Forks, made: Place, disk: Path) -> None:
        self._forking, self._made, self._disk = forking, made, disk

    def attempt(self, seed: int) -> Tally:
        """Each room of each action on the file system, then each limit."""
        pages, which = seed % _PAGES, seed // _PAGES % (_WAYS * len(self._made.actions))
        limited, name = which % _WAYS, [*self._made.actions][which // _WAYS]
        action, store = self._made.actions[name], self._disk / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self._made.original, store)
        before = Store(store).current()
        way = f"{name}, no file may grow further" if limited else f"{name}, the disk is full"
        failed = self._limited(action, pages) if limited else self._without_room(action, pages)
        if not failed:
            self._made.judge.require_holds(store, action.after, self._made.every(name))
            return Tally({f"{way}: it was just enough": 1})
        require(Store(store).current() == before, f"{name} failed, and {Store(store).current()} is current")
        self._made.judge.require_holds(store, self._made.old, self._made.every(name))
        require_no_halves(store)
        ended = self._forking.start(action.words).wait()
        require(ended.code == 0, f"{name} with room again: exit code {ended.code}: {ended.output}")
        self._made.judge.require_holds(store, action.after, self._made.every(name))
        return Tally({f"{way}: said so, changed nothing": 1})

    def _without_room(self, action: Action, pages: int) -> bool:
        disk, ballast = os.statvfs(self._disk), self._disk / "ballast"
        ballast.write_bytes(bytes(disk.f_bavail * disk.f_bsize - pages * _PAGE))
        ended = self._forking.start(action.words).wait()
        ballast.unlink()
        return _failed(ended.code, ended.output)

    def _limited(self, action: Action, pages: int) -> bool:
        ended = self._forking.start(action.words, file_bytes=pages * _PAGE).wait()
        return _failed(ended.code, ended.output)


def _failed(code: int, output: str) -> bool:
    if code == 0:
        return False
    require(code == 2, f"exit code {code}: {output}")
    require("bytes are needed" in output and "are free" in output, f"it does not say how much is needed: {output}")
    return True


FULL_DISK = Fault(
    name="full-disk",
    title="The disk is full at each write of a refresh, a delta, a compaction, or no file may grow further",
    promise="the old generation is served; temporary files are gone; the message says how much is needed; with room, "
    "the next run succeeds",
    unit="rooms, a page apart",
    wanted=_PAGES * _WAYS * 3,
    quick=24,
    prepare=_prepared,
)
