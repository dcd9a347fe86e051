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
from dataclasses import dataclass
from pathlib import Path

from faults.corpora import Corpus, Judge, changed, require_no_orphans, texts, write_changes
from faults.fault import Attempt, Fault, Tally, require
from faults.forking import Ended, Forks, forks
from store.maintenance import gc
from store.store import Store
from tests.bundles import write_tiny

_DOCUMENTS = 200
_CHANGES: dict[str, str | None] = {"d1": "the first of the changed", "new": "a new one", "d2": None}
_LATER: dict[str, str | None] = {"d1": "changed once more", "newer": "pizza", "d3": None}


@dataclass(frozen=True, slots=True)
class _Action:
    """A change of the store: its command, and what the store holds after it."""

    words: list[str]
    after: Corpus


@contextmanager
def _prepared(folder: Path) -> Iterator[Attempt]:
    bundle, original, store = write_tiny(folder), folder / "original", folder / "store"
    judge = Judge(bundle)
    base, other = texts(0, _DOCUMENTS), texts(1, _DOCUMENTS, first=20)
    old = changed(base, _CHANGES)

    def refresh(documents: dict[str, str | None], name: str, at: Path, *options: str) -> list[str]:
        file = write_changes(folder / name, documents)
        return ["refresh", "--bundle", str(bundle), "--store", str(at), "--documents", str(file), *options]

    # --force: nearly all texts change at once, which the swap gate may refuse.
    actions = {
        "full refresh": _Action(refresh({**other}, "full.jsonl", store, "--force"), other),
        "delta": _Action(refresh(_LATER, "later.jsonl", store, "--delta"), changed(old, _LATER)),
        "compaction": _Action(["store", "compact", "--store", str(store)], old),
    }
    with forks() as forking:
        for words in (
            refresh({**base}, "base.jsonl", original),
            refresh(_CHANGES, "changes.jsonl", original, "--delta"),
        ):
            _succeed(forking, words)
        killing = _Killing(forking, judge, original, store, old, actions)
        yield killing.attempt


class _Killing:
    def __init__(
        self, forking: Forks, judge: Judge, original: Path, store: Path, old: Corpus, actions: dict[str, _Action]
    ) -> None:
        self._forking, self._judge, self._actions = forking, judge, actions
        self._original, self._store, self._old = original, store, old
        self._whole: dict[str, tuple[int, float]] = {}  # steps and seconds of each action that nobody kills

    def attempt(self, seed: int) -> Tally:
        """Every third seed the same action; every other one of those at a step."""
        chance = random.Random(seed)
        name = [*self._actions][seed % 3]
        if name not in self._whole:
            self._renew()
            began = time.monotonic()
            steps = _succeed(self._forking, self._actions[name].words).steps
            self._whole[name] = steps, time.monotonic() - began
        self._renew()
        before = Store(self._store).current()
        ended = self._at_a_step(name, chance) if seed // 3 % 2 else self._at_a_moment(name, chance)
        require(ended.code in (-signal.SIGKILL, 0), f"{name}: exit code {ended.code}: {ended.output}")
        stays = Store(self._store).current() == before
        action = self._actions[name]
        every = {**self._old, **action.after}
        self._judge.require_holds(self._store, self._old if stays else action.after, every)
        gc(Store(self._store), keep=9)
        require_no_orphans(self._store, builds=True)
        _succeed(self._forking, action.words)
        self._judge.require_holds(self._store, action.after, every)
        gc(Store(self._store), keep=1)
        require_no_orphans(self._store, builds=False)
        when = f"before {ended.step}" if ended.step else "at a moment" if ended.code else "too late"
        return Tally({f"{name}, killed {when}: the {'old' if stays else 'new'} generation": 1})

    def _renew(self) -> None:
        shutil.rmtree(self._store, ignore_errors=True)
        shutil.copytree(self._original, self._store)

    def _at_a_step(self, name: str, chance: random.Random) -> Ended:
        steps = self._whole[name][0]
        return self._forking.start(self._actions[name].words, kill_step=chance.randint(1, steps)).wait()

    def _at_a_moment(self, name: str, chance: random.Random) -> Ended:
        run = self._forking.start(self._actions[name].words)
        time.sleep(chance.random() * self._whole[name][1])  # the fault itself: a moment, not a synchronisation
        with contextlib.suppress(ProcessLookupError):  # too late
            os.kill(run.pid, signal.SIGKILL)
        return run.wait()


def _succeed(forking: Forks, words: list[str]) -> Ended:
    ended = forking.start(words).wait()
    require(ended.code == 0, f"{' '.join(words)}: exit code {ended.code}: {ended.output}")
    return ended


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
