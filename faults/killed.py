"""SIGKILL of a refresh, a delta or a compaction: the `twinbert` command, killed from outside at a random moment or by
itself before a step that it takes.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.changes import Place, place, succeed
from faults.corpora import require_no_orphans
from faults.fault import Attempt, Fault, Tally, require
from faults.forking import Ended, Forks, forks
from store.maintenance import gc
from store.store import Store


@contextmanager
def _prepared(folder: Path, bundle: Path) -> Iterator[Attempt]:
    store = folder / "store"
    with forks() as forking:
        yield _Killing(forking, place(folder, bundle, store, forking), store).attempt


class _Killing:
    def __init__(self, forking: Forks, made: Place, store: Path) -> None:
        self._forking, self._made, self._store = forking, made, store
        self._whole: dict[str, tuple[int, float]] = {}  # steps and seconds of each action that nobody kills

    def attempt(self, seed: int) -> Tally:
        """Every third seed the same action; every other one of those at a step."""
        chance = random.Random(seed)
        name = [*self._made.actions][seed % 3]
        if name not in self._whole:
            self._renew()
            began = time.monotonic()
            steps = succeed(self._forking, self._made.actions[name].words).steps
            self._whole[name] = steps, time.monotonic() - began
        self._renew()
        before = Store(self._store).current()
        ended = self._at_a_step(name, chance) if seed // 3 % 2 else self._at_a_moment(name, chance)
        require(ended.code in (-signal.SIGKILL, 0), f"{name}: exit code {ended.code}: {ended.output}")
        stays = Store(self._store).current() == before
        action, every = self._made.actions[name], self._made.every(name)
        self._made.judge.require_holds(self._store, self._made.old if stays else action.after, every)
        gc(Store(self._store), keep=9)
        require_no_orphans(self._store, builds=True)
        succeed(self._forking, action.words)
        self._made.judge.require_holds(self._store, action.after, every)
        gc(Store(self._store), keep=1)
        require_no_orphans(self._store, builds=False)
        when = f"before {ended.step}" if ended.step else "at a moment" if ended.code else "too late"
        return Tally({f"{name}, killed {when}: the {'old' if stays else 'new'} generation": 1})

    def _renew(self) -> None:
        shutil.rmtree(self._store, ignore_errors=True)
        shutil.copytree(self._made.original, self._store)

    def _at_a_step(self, name: str, chance: random.Random) -> Ended:
        steps = self._whole[name][0]
        return self._forking.start(self._made.actions[name].words, kill_step=chance.randint(1, steps)).wait()

    def _at_a_moment(self, name: str, chance: random.Random) -> Ended:
        run = self._forking.start(self._made.actions[name].words)
        time.sleep(chance.random() * self._whole[name][1])  # the fault itself: a moment, not a synchronisation
        with contextlib.suppress(ProcessLookupError):  # too late
            os.kill(run.pid, signal.SIGKILL)
        return run.wait()


KILLED = Fault(
    name="killed",
    title="SIGKILL of a refresh, a delta, a compaction, at random moments and before each step of publishing",
    promise="the old generation or the new one, whole; every row is the one that its document and the bundle give; the "
    "next run succeeds; no orphan outlives one `gc`",
    unit="kills",
    wanted=1000,
    quick=12,
    prepare=_prepared,
)
