"""A store against a dict, through all that changes one: refreshes, deltas, compactions, rollbacks, collections."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from store_cases import SOFTWARE, Deletion, Document, assert_holds, change, delta, delta_writer, refresh

from store.compaction import compact
from store.errors import EmptyGenerationError
from store.format import BUILDING, SEGMENTS
from store.maintenance import gc, pin, rollback, unpin
from store.reader import Generation
from store.store import Store
from store.verification import verify

TEXTS = [f"text {i}" for i in range(6)]
STRINGS = ["a", "b", "é", "e\u0301", "x" * 511, "0", "00", "日本語"]
NUMBERS = [0, 1, 2**32, 2**63, 2**64 - 1, 5, 6, 7]
ABSENT: list[tuple[list[Any], list[Any]]] = [(STRINGS, ["nowhere", "aa"]), (NUMBERS, [2, 3])]

Corpus = dict[Any, Document]

NUMBER = st.integers(0, 7)
DOCUMENT = st.tuples(NUMBER, st.sampled_from(TEXTS), st.integers(0, 3))
CHANGE = st.one_of(DOCUMENT, DOCUMENT, NUMBER)


class Machine(RuleBasedStateMachine):
    """The store, and beside it what each of its generations must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store"
        self.store = Store(self.path)
        self.corpora: dict[str, Corpus] = {}
        self.pinned: set[str] = set()
        self.held: list[Generation] = []

    @initialize(
        chosen=st.lists(DOCUMENT, min_size=1, max_size=12),
        kind=st.sampled_from([0, 1]),
        encoding=st.sampled_from(["float32", "uint8"]),
    )
    def begin(self, chosen: list[Any], kind: int, encoding: str) -> None:
        self.ids, self.absent = ABSENT[kind]
        self.settings = {"id_type": "integer" if kind else "string", "encoding": encoding}
        self.refresh(chosen)

    def changes(self, drawn: list[Any]) -> list[Document | Deletion]:
        return [
            Deletion(self.ids[one]) if isinstance(one, int) else Document(self.ids[one[0]], *one[1:]) for one in drawn
        ]

    def applied(self, changes: list[Document | Deletion]) -> Corpus:
        corpus = dict(self.corpus)
        for one in changes:
            if isinstance(one, Document):
                corpus[one.id] = one
            else:
                corpus.pop(one.id, None)
        return corpus

    @property
    def current(self) -> str:
        return self.store.current()

    @property
    def corpus(self) -> Corpus:
        return self.corpora[self.current]

    @rule(chosen=st.lists(DOCUMENT, min_size=1, max_size=12))
    def refresh(self, chosen: list[Any]) -> None:
        before = {one.text for one in self.corpus.values()} if self.corpora else set()
        chosen = [Document(self.ids[one[0]], *one[1:]) for one in chosen]
        done = refresh(self.store, chosen, **self.settings)
        assert not before.intersection(done.encoded)
        self.corpora[done.name] = {one.id: one for one in chosen}

    @rule(drawn=st.lists(CHANGE, max_size=8))
    def delta(self, drawn: list[Any]) -> None:
        changes, before = self.changes(drawn), self.current
        corpus = self.applied(changes)
        if not corpus:
            with pytest.raises(EmptyGenerationError):
                delta(self.store, changes, **self.settings)
            return
        done = delta(self.store, changes, **self.settings)
        assert not {one.text for one in self.corpora[before].values()}.intersection(done.encoded)
        assert (done.name == before) == (corpus == self.corpora[before])
        self.corpora[done.name] = corpus

    @rule(drawn=st.lists(CHANGE, max_size=8), sealed=st.booleans())
    def abandon(self, drawn: list[Any], sealed: bool) -> None:
        """A delta that publishes nothing."""
        changes = self.changes(drawn)
        with delta_writer(self.store, **self.settings) as into:
            change(into, changes)
            into.sync()
            if sealed and (corpus := self.applied(changes)):
                with into.seal() as generation:
                    assert_holds(generation, corpus, self.absent)

    @rule(newest=st.none() | st.integers(1, 4))
    def compact(self, newest: int | None) -> None:
        before = self.store.manifest(self.current)
        done = compact(self.store, software=SOFTWARE, newest=newest)
        count = len(before.segments[:newest])
        assert (done is None) == (count == 1)
        if done is not None:
            after = self.store.manifest(self.current)
            assert (done.before, done.generation, done.segments) == (before.name, after.name, count)
            assert len(after.segments) == len(before.segments) - count + 1
            assert after.parent == before.parent
            self.corpora[after.name] = self.corpora[before.name]

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.store.generations()))
        rollback(self.store, name)
        assert self.current == name

    @rule(keep=st.integers(1, 3))
    def collect(self, keep: int) -> None:
        manifests = map(self.store.manifest, self.store.generations())
        sealed = sorted(manifests, key=lambda one: (one.created_ms, one.number))
        kept = {self.current, *(one.name for one in sealed[-keep:]), *self.pinned}
        if (parent := self.store.manifest(self.current).parent) in self.store.generations():
            kept.add(str(parent))
        gc(self.store, keep=keep)
        assert set(self.store.generations()) == kept
        needed = {segment.id for name in kept for segment in self.store.manifest(name).segments}
        assert {path.name for path in (self.path / SEGMENTS).iterdir()} == needed

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.store.generations()))
        pin(self.store, name)
        self.pinned.add(name)

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pinned)))
        unpin(self.store, name)
        self.pinned.remove(name)

    @rule()
    def hold(self) -> None:
        """A reader that stays, whatever is published, merged and collected after it came."""
        self.held.append(self.store.open(self.current))

    @rule()
    def reopen(self) -> None:
        """Another process."""
        self.let_go()
        self.store = Store(self.path)

    def let_go(self) -> None:
        for generation in self.held:
            assert_holds(generation, self.corpora[generation.name], self.absent)
            generation.close()
        self.held.clear()

    @invariant()
    def holds(self) -> None:
        if self.corpora:
            generation = self.store.open(self.current)
            assert_holds(generation, self.corpus, self.absent)
            generation.close()
            assert not (self.path / BUILDING / "compaction").exists()

    def teardown(self) -> None:
        with self.folder:
            self.let_go()
            assert [problem for _, problem in verify(self.store) if problem is not None] == []
            for name in self.store.generations():
                generation = self.store.open(name)
                assert_holds(generation, self.corpora[name], self.absent)
                generation.close()


def test_a_store_equals_a_dict_whatever_changes_it() -> None:
    """After any sequence of full refreshes, deltas, compactions, rollbacks, pins, collections and new processes, each
    generation that is kept is exactly what it was given, and no text that it has is encoded again.
    """
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
