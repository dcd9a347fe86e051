"""A refresh, a delta and a compaction, killed at each of their steps: the old generation or the new one, whole."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults.steps import kill_at
from store.compaction import compact
from store.format import BUILDING, SEGMENTS
from store.maintenance import gc
from store.store import Store
from store.verification import verify
from tests.unit.store_cases import SOFTWARE, Deletion, Document, assert_holds, delta, documents, refresh

BASE = documents(40)
OLD = [Document("document-1", "second"), Deletion("document-2")]
NEW = [Document("document-1", "third"), Document("new", "new"), Deletion("document-3")]

AFTER_OLD = {one.id: one for one in BASE if one.id not in ("document-1", "document-2")} | {"document-1": OLD[0]}
AFTER_NEW = {id_: one for id_, one in AFTER_OLD.items() if id_ != "document-3"} | {one.id: one for one in NEW[:2]}

ACTIONS: dict[str, tuple[Callable[[Store], object], dict[Any, Any]]] = {
    "refresh": (
        lambda store: refresh(store, documents(30, text="other")),
        {one.id: one for one in documents(30, text="other")},
    ),
    "delta": (lambda store: delta(store, NEW), AFTER_NEW),
    "compaction": (lambda store: compact(store, software=SOFTWARE), AFTER_OLD),
    "compaction of deltas": (lambda store: compact(store, software=SOFTWARE, newest=2), AFTER_OLD),
}


def assert_is_one_of(store: Store, *corpora: dict[Any, Document]) -> None:
    """The current generation is one of these, whole, and no generation is damaged."""
    generation = store.open(store.current())
    try:
        corpus = next(one for one in corpora if len(one) == generation.manifest.documents and holds(generation, one))
        assert_holds(generation, corpus, ["nowhere"])
    finally:
        generation.close()
    assert [str(problem) for _, problem in verify(store) if problem is not None] == []


def holds(generation: Any, corpus: dict[Any, Document]) -> bool:
    """Whether a generation has these ids with these times."""
    located = generation.locate(list(corpus))
    times = [document.time_ms for document in corpus.values()]
    return bool(located.found.all()) and generation.stack.times(located.rows).tolist() == times


def assert_no_orphans(store: Store) -> None:
    """Every segment is named by a generation, and no compaction has left anything."""
    named = {one.id for name in store.generations() for one in store.manifest(name).segments}
    assert {path.name for path in (store.path / SEGMENTS).iterdir()} == named
    assert not (store.path / BUILDING / "compaction").exists()


def kill_everywhere(folder: Path, action: str) -> None:
    """Kills the action at each of its steps, in a process of its own; prints the steps."""
    act, new = ACTIONS[action]
    original, path, told = folder / "original", folder / "store", folder / "step"
    refresh(Store(original), BASE)
    for one in OLD:
        delta(Store(original), [one])
    for step in itertools.count(1):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(original, path)
        child = os.fork()
        if not child:
            kill_at(step, told.write_text)
            act(Store(path))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
        store = Store(path)
        assert_is_one_of(store, AFTER_OLD, new)
        gc(store, keep=9)
        assert_no_orphans(store)
        act(store)
        assert_is_one_of(store, new)
        gc(store, keep=1)
        assert_no_orphans(store)
        assert list((path / BUILDING).iterdir()) == []
        sys.stdout.write(json.dumps(told.read_text()) + "\n")


@pytest.mark.parametrize("action", ACTIONS)
def test_killed_at_each_step(tmp_path: Path, action: str) -> None:
    """Wherever it is killed, CURRENT names the old generation or the new one, every row is its document's, one
    collection leaves no orphan, and the next run succeeds.
    """
    code = "from tests.faults.test_steps_killed import *; kill_everywhere(Path(sys.argv[1]), sys.argv[2])"
    words = [sys.executable, "-c", code, str(tmp_path), action]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(steps) > 15
    assert {"fsync", "rename", "replace", "posix_fallocate"} <= set(steps)
