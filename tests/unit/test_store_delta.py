"""Deltas: what they change, what they leave, and when they are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_cases import (
    FINGERPRINT,
    Deletion,
    Document,
    assert_holds,
    bytecodes,
    change,
    data_file,
    delta,
    delta_writer,
    documents,
    embeddings,
    flip,
    forge,
    holds,
    interrupt,
    refresh,
    tree,
    weak_until,
    writer,
)

from store.errors import (
    CorruptError,
    EmptyGenerationError,
    IdTypeError,
    NoGenerationError,
    RowsMismatchError,
    StoreFullError,
    StoreLockedError,
    StoreNotFoundError,
)
from store.files import replace_file
from store.format import BUILDING, CURRENT
from store.store import Store
from store.verification import verify


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store of nine documents."""
    made = Store(tmp_path / "store")
    refresh(made, documents(9))
    return made


def is_now(store: Store, chosen: Sequence[Document]) -> bool:
    """Whether the current generation is exactly these documents, times too, and nothing of it is damaged."""
    generation = store.open(store.current())
    try:
        assert_holds(generation, {document.id: document for document in chosen}, ["nowhere"])
    finally:
        generation.close()
    return all(problem is None for _, problem in verify(store))


def test_a_delta_lies_over_what_is_there(store: Store) -> None:
    """A delta adds, replaces and deletes documents with one small segment; the generation before is whole, and shares
    its segment.
    """
    before = store.manifest(store.current())
    stored = [Document("document-3", "other", 7), Document("new", "new", 5_000)]
    done = delta(store, [*stored, Deletion("document-8")], model="0" * 64)
    assert (done.encoded, done.duplicates, done.absent) == (["other", "new"], 0, 0)
    assert is_now(store, [*(one for one in documents(8) if one.id != "document-3"), *stored])
    manifest = store.manifest(done.name)
    assert manifest.segments[1:] == before.segments
    assert (manifest.segments[0].documents, manifest.segments[0].deleted) == (2, 1)
    assert manifest.segments[0].file.size < 100_000
    assert (manifest.documents, manifest.dead_share, manifest.watermark_ms) == (9, 1 - 9 / 11, 5_000)
    assert (manifest.parent, manifest.model, manifest.seed) == (before.name, before.model, before.seed)
    assert holds(store, documents(9), before.name)
    assert list((store.path / BUILDING).iterdir()) == []


def test_what_comes_last_counts(store: Store) -> None:
    """Of several changes of a document in one delta the last counts, be it a deletion or not, whatever comes first."""
    changes = [
        Deletion("document-0"),
        Document("document-1", "once"),
        Document("document-0", "again"),
        Document("document-1", "twice"),
        Document("document-2", "in vain"),
        Deletion("document-2"),
        Document("new", "in vain"),
        Deletion("new"),
    ]
    done = delta(store, changes)
    assert (done.duplicates, done.absent) == (4, 1)
    assert is_now(store, [Document("document-0", "again"), Document("document-1", "twice"), *documents(9)[3:]])


@pytest.mark.parametrize("time_ms", [-(2**62), 0, 1_002, 2**62])
def test_a_later_delta_counts_whatever_its_times(store: Store, time_ms: int) -> None:
    """A document that is older by its source time than the one that is stored replaces it, and its time is kept."""
    delta(store, [Document("document-2", "a source that was put back", time_ms)])
    others = [one for one in documents(9) if one.id != "document-2"]
    assert is_now(store, [*others, Document("document-2", "a source that was put back", time_ms)])
    delta(store, [Deletion("document-2")])
    assert is_now(store, others)
    delta(store, [Document("document-2", "back again", time_ms)])
    assert is_now(store, [*others, Document("document-2", "back again", time_ms)])
    assert store.manifest(store.current()).watermark_ms == max(1_008, time_ms)


@pytest.mark.parametrize("changes", [[], [Deletion("nowhere"), Deletion("aha")], documents(4)])
def test_a_delta_that_changes_nothing(store: Store, changes: list[Any]) -> None:
    """Without changes, with deletions of what is not there, and with what is there already, text and time, nothing is
    published: the name is that of the current generation.
    """
    before, name = tree(store.path), store.current()
    done = delta(store, changes)
    assert (done.name, done.encoded) == (name, [])
    assert done.absent == sum(isinstance(one, Deletion) for one in changes)
    assert tree(store.path) == before
    assert not list((store.path / BUILDING).iterdir())


def test_a_delta_that_comes_again(store: Store) -> None:
    """A delta that is repeated, as after a lost answer, changes nothing the second time."""
    changes = [Document("document-3", "other", 7), Deletion("document-8"), Document("new", "new", 5_000)]
    name = delta(store, changes).name
    assert delta(store, changes).name == name


def test_a_new_time_is_a_change(store: Store) -> None:
    """A document with the same text and another time is stored anew, by a copy of its row."""
    assert delta(store, [Document("document-3", "text 3", 9_999)]).encoded == []
    assert is_now(
        store, [*(one for one in documents(9) if one.id != "document-3"), Document("document-3", "text 3", 9_999)]
    )


def test_the_last_document_stays(store: Store) -> None:
    """A delta that would leave no document is refused: a generation has at least one."""
    before = tree(store.path)
    with pytest.raises(EmptyGenerationError, match="all 9 documents"):
        delta(store, [Deletion(one.id) for one in documents(9)])
    assert {path: content for path, content in tree(store.path).items() if not path.startswith(BUILDING)} == before
    delta(store, [Deletion(one.id) for one in documents(8)])
    assert is_now(store, documents(9)[8:])


@pytest.mark.parametrize(
    ("changed", "sides"),
    [
        ({"fingerprint": "ab" * 32}, (FINGERPRINT, "ab" * 32)),
        ({"encoding": "uint8"}, ("16 × float32", "16 × uint8")),
        ({"dimension": 8}, ("16 × float32", "8 × float32")),
    ],
)
def test_rows_of_another_kind_are_refused(store: Store, changed: dict[str, Any], sides: tuple[str, str]) -> None:
    """A delta of another fingerprint, encoding or dimension is refused with both sides, and changes nothing."""
    before = tree(store.path)
    with pytest.raises(RowsMismatchError) as refusal:
        delta(store, [Document("a", "text")], **changed)
    assert all(side in str(refusal.value) for side in (*sides, store.current(), str(store.path)))
    assert tree(store.path) == before


def test_a_fixed_step_is_another_kind(tmp_path: Path) -> None:
    """Rows of uint8 with and without the fixed step do not mix."""
    store = Store(tmp_path)
    refresh(store, documents(9), encoding="uint8", fixed_step=True)
    with pytest.raises(RowsMismatchError, match=r"uint8, fixed step\).*uint8\)"):
        delta(store, [Document("a", "text")], encoding="uint8")


def test_what_there_must_be(tmp_path: Path) -> None:
    """A delta needs a store with a generation that can be read: else it is refused, and makes nothing."""
    store = Store(tmp_path / "store")
    with pytest.raises(StoreNotFoundError):
        delta(store, [Document("a", "text")])
    assert not store.path.exists()
    store.create()
    with pytest.raises(NoGenerationError, match="twinbert refresh"):
        delta(store, [Document("a", "text")])
    refresh(store, documents(9))
    with pytest.raises(IdTypeError, match="keeps its id type"):
        delta(store, [Document(5, "text")], id_type="integer")
    flip(data_file(store), 5000)
    before = tree(store.path)
    with pytest.raises(CorruptError, match="checksum"):
        delta(Store(store.path), [Document("a", "text")])
    assert tree(store.path) == before


def test_a_delta_alone_is_no_generation(store: Store) -> None:
    """A manifest that leaves the oldest segment out is refused: what is deleted there is not there to be deleted."""
    delta(store, [Document("a", "text"), Deletion("document-1")])
    name = forge(store, lambda fields: fields.update(segments=fields["segments"][:1], documents=1), number=2)
    with pytest.raises(CorruptError):
        store.manifest(name)


def test_one_writer_at_a_time(store: Store) -> None:
    """A delta is refused while another runs, which is named, and the first goes on."""
    with delta_writer(store) as first:
        change(first, [Document("a", "text")])
        for another in (delta_writer, writer):
            with pytest.raises(StoreLockedError, match="a delta refresh of model 8d8d"), another(Store(store.path)):
                pass
        with first.seal():
            pass
        first.publish({})
    assert is_now(store, [*documents(9), Document("a", "text")])


def test_integer_ids(tmp_path: Path) -> None:
    """Deltas of integer ids over the whole of 0 to 2^64 - 1, and deletions that leave a segment without a row."""
    store, numbers = Store(tmp_path), [0, 1, 2**32, 2**63, 2**64 - 1]
    refresh(store, [Document(number, f"text {number}") for number in numbers], id_type="integer")
    delta(store, [Deletion(number) for number in numbers[1:3]], id_type="integer")
    assert store.manifest(store.current()).segments[0].documents == 0
    delta(store, [Document(numbers[4], "other")], id_type="integer")
    generation = store.open(store.current())
    located = generation.locate(np.array(numbers, np.uint64))
    assert located.found.tolist() == [True, False, False, True, True]
    assert generation.ids(located.rows) == [0, 2**63, 2**64 - 1]
    expected = embeddings(["text 0", f"text {2**63}", "other"])
    np.testing.assert_array_equal(generation.read(located), expected)
    generation.close()


def test_rows_are_reused_from_every_segment(store: Store) -> None:
    """No text that any segment of the current generation has a row for is encoded again, by a delta or a full refresh,
    under whatever id, even if the row is dead.
    """
    delta(store, [Document("document-0", "second"), Document("a", "third"), Deletion("document-5")])
    delta(store, [Document("document-0", "fourth")])
    again = [Document("b", "text 0"), Document("c", "text 5"), Document("document-0", "second"), Document("d", "third")]
    assert delta(store, again).encoded == []
    expected = [*documents(5)[1:], *documents(9)[6:], Document("a", "third"), *again]
    assert is_now(store, expected)
    texts = [
        Document(f"full-{i}", text)
        for i, text in enumerate(["fourth", "third", "second", "text 0", "text 5", "text 8"])
    ]
    assert refresh(store, texts).encoded == []
    assert is_now(store, texts)
    assert len(store.manifest(store.current()).segments) == 1


def test_an_interrupted_delta_is_resumed(store: Store) -> None:
    """What a delta encoded before it was left the next one reuses, and what a full refresh left outlives deltas."""
    encoded = interrupt(store, documents(20))
    assert len(encoded) == 11
    with delta_writer(store) as left:
        change(left, [Document("a", "one"), Document("b", "two"), Deletion("document-1")])
        left.sync()
    assert is_now(store, documents(9))
    assert delta(store, [Document("c", "two"), Document("d", "three")]).encoded == ["three"]
    assert is_now(store, [*documents(9), Document("c", "two"), Document("d", "three")])
    assert refresh(store, documents(20)).encoded == []


def test_sealing_in_vain_leaves_no_segment(store: Store) -> None:
    """A delta that is sealed and not published, or whose publication fails, leaves the segments that there were."""
    before = {path for path in tree(store.path) if not path.startswith(BUILDING)}
    with delta_writer(store) as into:
        change(into, [Document("a", "text")])
        with into.seal():
            pass
    assert {path for path in tree(store.path) if not path.startswith(BUILDING)} == before
    with pytest.MonkeyPatch.context() as failing:

        def replacing_no_current(path: Path, content: bytes) -> None:
            if path.name == CURRENT:
                raise OSError(28, "No space left on device")
            replace_file(path, content)

        failing.setattr("store.manifest.replace_file", replacing_no_current)
        with pytest.raises(StoreFullError):
            delta(store, [Document("a", "text")])
    assert {path for path in tree(store.path) if not path.startswith(BUILDING)} == before
    assert delta(store, [Document("a", "text")]).encoded == []
    assert is_now(store, [*documents(9), Document("a", "text")])


def test_two_ids_with_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document whose key is that of a stored one, or of one that came before it, is left out and named; the others
    are stored. A deletion of such an id deletes nothing. A full refresh takes another seed.
    """
    monkeypatch.setattr("store.keys.xxhash", weak_until(1))  # under seed 0, ids of one length share a key
    store = Store(tmp_path)
    refresh(store, [Document("a", "text a"), Document("bb", "text bb")])
    changes = [
        Document("b", "takes a's key"),
        Document("ccc", "first of its key"),
        Document("ddd", "second of its key"),
        Deletion("c"),
        Document("bb", "changed"),
        Document("ccc", "changed too"),
    ]
    done = delta(store, changes)
    assert [(one.position, one.id, one.other) for one in done.clashes] == [(0, "b", "a"), (2, "ddd", "ccc")]
    assert (done.duplicates, done.absent) == (1, 1)
    assert holds(store, [Document("a", "text a"), Document("bb", "changed"), Document("ccc", "changed too")])
    delta(store, [Deletion("a")])
    assert delta(store, [Document("b", "has the key now")]).clashes == ()
    refresh(store, [Document("a", "text a"), Document("b", "has a key of its own")])
    assert store.manifest(store.current()).seed == 1


def test_lookups_among_many_segments(store: Store) -> None:
    """However many deltas there are, a lookup searches twice: it runs the same Python code among six segments as among
    two, and reads where they come from with a few instructions a segment, none a document.
    """
    ids = [f"document-{number}" for number in range(2_000)]

    def work() -> tuple[int, int]:
        generation = store.open(store.current())
        located = generation.locate(ids)
        counted = bytecodes(lambda: generation.locate(ids)), bytecodes(lambda: generation.read(located))
        generation.close()
        return counted

    alone = work()
    delta(store, documents(1_000, first=100))
    two = work()
    for round_ in range(4):
        delta(store, documents(200, first=1_000 + 100 * round_, text=f"round {round_}"))
    six = work()
    assert len(store.manifest(store.current()).segments) == 6
    assert alone[0] < two[0] == six[0] < 3 * alone[0]
    assert six[1] - two[1] < 4 * 200
