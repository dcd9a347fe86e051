"""Documents whose embeddings follow from their texts, and refreshes of them through the real writer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from store.documents import Batch
from store.encoding import Floats
from store.format import COMPACTION, CURRENT, GENERATIONS, LOCK, SEGMENTS, generation_name
from store.store import Store
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
class Refreshed:
    """What a refresh did: the generation's name, the texts that it had to encode, and ids that came again."""

    name: str
    encoded: list[str]
    duplicates: int


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


def data_file(store: Store, name: str | None = None) -> Path:
    """The file of a generation's segment, ordinarily of the current one."""
    manifest = store.manifest(name or store.current())
    return store.path / SEGMENTS / manifest.segments[0].id / "data.mdb"


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


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its locks, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (LOCK, COMPACTION))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
