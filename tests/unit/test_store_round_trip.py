"""A store against a dict: whatever refreshes it went through, it holds what the last published one was given."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_cases import Document, add, assert_holds, batch_of, documents, embeddings, writer

from store.store import Store

# Encoding, and whether the tower ends in tanh. The embeddings of these tests stay in [-1, 1], so all of them fit.
ENCODINGS = [("float32", False), ("float16", False), ("uint8", True), ("uint8", False)]
TEXTS = [f"text {i}" for i in range(8)]
STRINGS = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.sampled_from(["é", "e\u0301", "a\x00b", " ", "日本語", "\U0001f600", "x" * 511, "é" * 255, "0", "00"]),
)
INTEGERS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]))


@dataclass(frozen=True, slots=True)
class Step:
    """A refresh: its input, the order in which it is computed, and how far it comes."""

    documents: list[Document]
    order: list[int]
    encoding: tuple[str, bool]
    end: str


@st.composite
def refreshes(draw: st.DrawFn, ids: st.SearchStrategy[Any]) -> tuple[list[Any], list[Step]]:
    """Ids that never occur, and refreshes over a small pool of others, so that ids and texts come again."""
    pool = draw(st.lists(ids, min_size=2, max_size=14, unique=True))
    used, absent = pool[: -max(1, len(pool) // 4)], pool[-max(1, len(pool) // 4) :]
    document = st.builds(Document, st.sampled_from(used), st.sampled_from(TEXTS), st.integers(-(2**62), 2**62))
    steps = []
    for _ in range(draw(st.integers(1, 4))):
        chosen = draw(st.lists(document, min_size=1, max_size=24))
        order = draw(st.permutations(range(len(chosen))))
        end = draw(st.sampled_from(["publish", "publish", "leave", "leave sealed"]))
        steps.append(Step(chosen, order, draw(st.sampled_from(ENCODINGS)), end))
    return absent, [*steps, Step(draw(st.lists(document, min_size=1, max_size=24)), [], ("float32", False), "publish")]


def run(store: Store, absent: list[Any], steps: list[Step]) -> None:
    """Goes through the refreshes beside a model of what they must leave behind."""
    id_type = "integer" if isinstance(absent[0], int) else "string"
    current: dict[Any, Document] = {}
    current_encoding: tuple[str, bool] | None = None
    built: dict[tuple[str, bool], set[str]] = {}  # texts of the rows that interrupted builds left
    for step in steps:
        last = {document.id: document for document in step.documents}
        known = built.get(step.encoding, set()) | (
            {document.text for document in current.values()} if current_encoding == step.encoding else set()
        )
        with writer(store, encoding=step.encoding[0], fixed_step=step.encoding[1], id_type=id_type) as into:
            encoded = add(into, step.documents, order=step.order)
            arrived = [step.documents[place].text for place in step.order or range(len(step.documents))]
            assert encoded == [text for text in arrived if text not in known]
            if step.end != "leave":
                with into.seal() as sealed:
                    assert_holds(sealed, last, absent)
                    assert sealed.manifest.watermark_ms == max(document.time_ms for document in last.values())
                assert into.duplicates == len(step.documents) - len(last)
            else:
                into.sync()
            if step.end == "publish":
                assert into.publish({}) == store.current()
                current, current_encoding = last, step.encoding
                built.pop(step.encoding, None)
            else:
                built[step.encoding] = built.get(step.encoding, set()) | set(arrived)
        if current:
            generation = store.open(store.current())
            try:
                assert_holds(generation, current, absent)
            finally:
                generation.close()


@pytest.mark.parametrize("ids", [STRINGS, INTEGERS], ids=["strings", "integers"])
def test_store_equals_a_dict(ids: st.SearchStrategy[Any]) -> None:
    """After any sequence of refreshes, interrupted or not, with ids and texts that come again in any order and any
    encoding, readers find exactly what the last published refresh was given, and no text is encoded twice.
    """

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(refreshes(ids))
    def check(case: tuple[list[Any], list[Step]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run(Store(Path(folder) / "store"), *case)

    check()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_reuse_copies_the_bits(tmp_path: Path, encoding: tuple[str, bool]) -> None:
    """A reused row has the same bits as the row that it was copied from, from a generation and from a build alike."""
    store = Store(tmp_path)
    chosen = documents(40)
    ids = [document.id for document in chosen]
    settings_ = {"encoding": encoding[0], "fixed_step": encoding[1]}
    seen = []
    for interrupted in (False, True, False):
        with writer(store, **settings_) as into:
            batch = batch_of(chosen)
            known = into.add_known(batch)
            if not known.all():
                into.add(batch.take(~known), embeddings([document.text for document in chosen]))
            if interrupted:
                into.sync()
                continue
            with into.seal() as generation:
                seen.append(generation.stack.segments[0].raw(generation.locate(ids).rows))
            into.publish({})
    (rows, scales), (rows_again, scales_again) = seen
    assert rows.tobytes() == rows_again.tobytes()
    assert (scales is None) == (scales_again is None)
    if scales is not None and scales_again is not None:
        assert scales.tobytes() == scales_again.tobytes()
