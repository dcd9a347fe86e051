"""The three ways in which a store changes (a full refresh, a delta, a compaction) as commands on one and the same
store, and what it holds before and after each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from faults.corpora import Corpus, Judge, changed, texts, write_changes
from faults.fault import require
from faults.forking import Ended, Forks

_DOCUMENTS = 200
_CHANGES: dict[str, str | None] = {"d1": "the first of the changed", "new": "a new one", "d2": None}
_LATER: dict[str, str | None] = {"d1": "changed once more", "newer": "pizza", "d3": None}


@dataclass(frozen=True, slots=True)
class Action:
    """A change of the store: the words of its command, and what the store holds after it."""

    words: list[str]
    after: Corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where stores are changed.

    Attributes:
        judge: says what a store holds.
        original: a store of `old`, in two segments, to be copied to where the actions change it.
        old: what it holds.
        actions: by name.
    """

    judge: Judge
    original: Path
    old: Corpus
    actions: Mapping[str, Action]

    def every(self, name: str) -> Corpus:
        """All documents that are there before or after an action."""
        return {**self.old, **self.actions[name].after}


def place(folder: Path, bundle: Path, store: Path, forking: Forks) -> Place:
    """Makes one, with a bundle, whose actions change `store`."""
    original = folder / "original"
    base, other = texts(0, _DOCUMENTS), texts(1, _DOCUMENTS, first=20)
    old = changed(base, _CHANGES)

    def refresh(at: Path, documents: Mapping[str, str | None], *options: str) -> list[str]:
        file = write_changes(folder / f"{len([*folder.iterdir()])}.jsonl", documents)
        return ["refresh", "--bundle", str(bundle), "--store", str(at), "--documents", str(file), *options]

    for words in (refresh(original, base), refresh(original, _CHANGES, "--delta")):
        succeed(forking, words)
    # --force: nearly all texts change at once, which the swap gate may refuse.
    actions = {
        "full refresh": Action(refresh(store, other, "--force"), other),
        "delta": Action(refresh(store, _LATER, "--delta"), changed(old, _LATER)),
        "compaction": Action(["store", "compact", "--store", str(store)], old),
    }
    return Place(judge=Judge(bundle), original=original, old=old, actions=actions)


def succeed(forking: Forks, words: list[str]) -> Ended:
    """Runs a command to its end, which must be a good one."""
    ended = forking.start(words).wait()
    require(ended.code == 0, f"{' '.join(words)}: exit code {ended.code}: {ended.output}")
    return ended
