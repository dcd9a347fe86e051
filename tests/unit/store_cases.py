"""Documents whose embeddings follow from their texts, and refreshes of them through the real writer."""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from store.changes import Clash
from store.delta import DeltaWriter
from store.documents import Batch
from store.encoding import Floats
from store.format import BUILDING, COMPACTION, CURRENT, GENERATIONS, LOCK, SEGMENTS, SWITCH, U64, generation_name
from store.reader import Generation
from store.store import Store
from store.verification import verify
from store.writer import Writer, digests

DIMENSION = 16
FINGERPRINT = "fe" * 32
MODEL = "8d" * 32
SOFTWARE = "tests 1"


@dataclass(frozen=True, slots=True)
class Document:
    """What a refresh is told of a document."""

    id: Any
    text: str
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a delta is told of a document that is gone."""

    id: Any


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh did: the generation's name, the texts that it had to encode, ids that came again, and for a delta
    deletions of ids that were not there, and documents that were left out.
    """

    name: str
    encoded: list[str]
    duplicates: int
    absent: int = 0
    clashes: tuple[Clash, ...] = ()


def embeddings(texts: Sequence[str], dimension: int = DIMENSION) -> Floats:
    """An embedding for each text, in [-1, 1]: float32 [N, D]."""
    bits = b"".join(hashlib.shake_128(text.encode()).digest(4 * dimension) for text in texts)
    whole_ND = np.frombuffer(bits, "<i4").reshape(len(texts), dimension)
    return (whole_ND / 2.0**31).astype(np.float32)


def documents(count: int, *, first: int = 0, text: str = "text") -> list[Document]:
    """`count` documents with string ids."""
    return [Document(f"document-{i}", f"{text} {i}", 1_000 + i) for i in range(first, first + count)]


def batch_of(chosen: Sequence[Document], positions: npt.NDArray[np.int64] | None = None) -> Batch:
    """The documents as a batch; `positions` are their places in the input."""
    return Batch(
        ids=[document.id for document in chosen],
        digests=digests([document.text for document in chosen]),
        times=np.array([document.time_ms for document in chosen], np.int64),
        positions=np.arange(len(chosen)) if positions is None else positions,
    )


def writer(store: Store, **settings: Any) -> Writer:
    """A writer with the settings of these tests, unless others are given."""
    defaults: dict[str, Any] = {
        "fingerprint": FINGERPRINT,
        "model": MODEL,
        "dimension": DIMENSION,
        "encoding": "float32",
        "fixed_step": False,
        "id_type": "string",
        "software": SOFTWARE,
    }
    return store.writer(**(defaults | settings))


def add(into: Writer, chosen: Sequence[Document], *, order: Sequence[int] = (), size: int = 7) -> list[str]:
    """Adds documents in batches of `size`, as a refresh does; returns the texts that had to be encoded.

    `order` is the order in which they arrive, where that is not the input's: positions say what is later.
    """
    places = np.array(order or range(len(chosen)), np.int64)
    encoded: list[str] = []
    for start in range(0, len(places), size):
        here = places[start : start + size]
        batch = batch_of([chosen[place] for place in here.tolist()], here)
        known = into.add_known(batch)
        texts = [chosen[place].text for place in here[~known].tolist()]
        if texts:
            into.add(batch.take(~known), embeddings(texts))
        encoded += texts
    return encoded


def refresh(store: Store, chosen: Sequence[Document], *, order: Sequence[int] = (), **settings: Any) -> Refreshed:
    """Publishes a generation of the documents."""
    with writer(store, **settings) as into:
        encoded = add(into, chosen, order=order)
        with into.seal():
            pass
        return Refreshed(into.publish({}), encoded, into.duplicates)


def three_generations(path: Path) -> Store:
    """A store with three generations of 3, 4 and 5 documents."""
    made = Store(path)
    for count in (3, 4, 5):
        refresh(made, documents(count))
    return made


def change(into: DeltaWriter, changes: Sequence[Document | Deletion]) -> list[str]:
    """Adds changes to a delta, deletions before the documents that they come after: positions say what is later."""
    gone = {place: one for place, one in enumerate(changes) if isinstance(one, Deletion)}
    if gone:
        into.delete([one.id for one in gone.values()], np.array([*gone]))
    kept = {place: one for place, one in enumerate(changes) if isinstance(one, Document)}
    batch = batch_of([*kept.values()], np.array([*kept], np.int64))
    known = into.add_known(batch)
    texts = [one.text for one, there in zip(kept.values(), known, strict=True) if not there]
    if texts:
        into.add(batch.take(~known), embeddings(texts))
    return texts


def delta_writer(store: Store, **settings: Any) -> DeltaWriter:
    """A delta with the settings of these tests, unless others are given."""
    made = writer(store, delta=True, **settings)
    assert isinstance(made, DeltaWriter)
    return made


def delta(store: Store, changes: Sequence[Document | Deletion], **settings: Any) -> Refreshed:
    """Publishes a delta."""
    with delta_writer(store, **settings) as into:
        encoded = change(into, changes)
        with into.seal():
            pass
        return Refreshed(into.publish({}), encoded, into.duplicates, into.absent, into.clashes)


def interrupt(store: Store, chosen: Sequence[Document], **settings: Any) -> list[str]:
    """Begins a refresh and leaves it; returns the texts that it encoded."""
    with writer(store, **settings) as into:
        encoded = add(into, chosen)
        into.sync()
    return encoded


def weak_until(seed: int) -> Any:
    """xxhash, but under seeds below `seed` ids of one length share a key."""

    def xxh3_64_intdigest(content: bytes, under: int) -> int:
        return xxhash.xxh3_64_intdigest(content, under) if under >= seed else len(content)

    return SimpleNamespace(xxh3_64_intdigest=xxh3_64_intdigest)


def read(store: Store, ids: Any, name: str | None = None) -> Floats:
    """Embeddings of documents that must all be there, float32 [N, D]."""
    generation = store.open(name or store.current())
    try:
        located = generation.locate(ids)
        assert located.found.all()
        return generation.read(located)
    finally:
        generation.close()


def holds(store: Store, chosen: Sequence[Document], name: str | None = None) -> bool:
    """Whether a generation, ordinarily the current one, is exactly these documents in float32."""
    found = read(store, [document.id for document in chosen], name)
    count = store.manifest(name or store.current()).documents
    return count == len(chosen) and np.array_equal(found, embeddings([document.text for document in chosen]))


def as_asked(ids: list[Any]) -> Any:
    """Ids as readers ask for them."""
    return np.array(ids, U64) if ids and isinstance(ids[0], int) else ids


def assert_holds(generation: Generation, last: dict[Any, Document], absent: list[Any]) -> None:
    """The generation is the dict: by id, by row, by place and by scan."""
    manifest, ids = generation.manifest, list(last)
    expected_ND = embeddings([document.text for document in last.values()])
    step_N1 = _step_of((manifest.encoding, manifest.fixed_step), expected_ND)

    asked = [id_ for pair in zip(ids, absent * len(ids), strict=False) for id_ in pair]
    located = generation.locate(as_asked(asked))
    assert located.found.tolist() == [True, False] * len(ids)
    found_ND = generation.read(located)
    assert (np.abs(found_ND - expected_ND) <= step_N1).all()
    assert generation.ids(located.rows) == ids
    assert generation.stack.times(located.rows).tolist() == [document.time_ms for document in last.values()]

    rows: list[int] = []
    blocks: list[Floats] = []
    for rows_R, block_RD in generation.scan(5):
        assert 1 <= len(rows_R) == len(block_RD) <= 5
        rows += rows_R.tolist()
        blocks.append(block_RD)
    assert rows == sorted(located.rows.tolist()) == generation.rows_at(np.arange(manifest.documents)).tolist()
    np.testing.assert_array_equal(np.concatenate(blocks)[np.searchsorted(rows, located.rows)], found_ND)


def _step_of(encoding: tuple[str, bool], vectors_ND: Floats) -> npt.NDArray[np.float64]:
    """The error that an encoding may have for each row, [N, 1]."""
    largest_N1 = np.abs(vectors_ND.astype(np.float64)).max(axis=1, keepdims=True)
    steps: dict[tuple[str, bool], npt.NDArray[np.float64]] = {
        ("float32", False): 0 * largest_N1,
        ("float16", False): np.full_like(largest_N1, 2.0**-11),
        ("uint8", True): np.full_like(largest_N1, 1 / 255 + 1e-6),
        ("uint8", False): largest_N1 / 254 + 1e-6,
    }
    return steps[encoding]


def manifest_path(store: Store, name: str) -> Path:
    """A generation's manifest."""
    return store.path / GENERATIONS / f"{name}.json"


def segment_of(store: Store, name: str) -> str:
    """The segment that a generation names."""
    return store.manifest(name).segments[0].id


def data_file(store: Store, name: str | None = None) -> Path:
    """The file of a generation's segment, ordinarily of the current one."""
    manifest = store.manifest(name or store.current())
    return store.path / SEGMENTS / manifest.segments[0].id / "data.mdb"


def problems(store: Store, name: str | None = None) -> dict[str, str]:
    """What `verify` finds wrong, by what it checked."""
    return {checked: str(problem) for checked, problem in verify(store, name) if problem is not None}


def flip(path: Path, at: int, mask: int = 0x01) -> None:
    """Flips bits of one byte."""
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)


def forge(store: Store, change: Callable[[dict[str, Any]], object], *, number: int = 1) -> str:
    """Makes a changed manifest current under the name that its bytes call for, as a writer with a fault would."""
    fields = json.loads((store.path / GENERATIONS / f"{store.current()}.json").read_bytes())
    change(fields)
    content = json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    name = generation_name(number, hashlib.sha256(content).hexdigest())
    (store.path / GENERATIONS / f"{name}.json").write_bytes(content)
    (store.path / CURRENT).write_text(f"{name}\n")
    return name


def builds(store: Store) -> list[Path]:
    """The interrupted builds that are there."""
    return list((store.path / BUILDING).iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its locks, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, COMPACTION, SWITCH))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def bytecodes(call: Callable[[], object]) -> int:
    """How many Python instructions a call executes, without those of finalisers that a collection would run in it."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.disable()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
        gc.enable()
    return count
