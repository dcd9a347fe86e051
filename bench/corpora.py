"""Stores of random documents for measuring, kept between runs where a folder is given, and bundles to cross them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt

from bench.workloads import CANDIDATES, number_id
from store.documents import Batch
from store.format import DIGEST
from store.manifest import IdType
from store.reader import Generation
from store.store import Store
from twinbert.bundle import Bundle
from twinbert.export import export
from twinbert.model.config import ResidualConfig, TowerConfig, TwinConfig
from twinbert.model.twin import TwinBert
from twinbert.tokenizer import TriLetter, save_triletter

_BLOCK = 1 << 16
_ODD = np.uint64(0x9E3779B97F4A7C15)  # times a number, a digest that no other has


@dataclass(frozen=True)
class Corpus:
    """A store of random documents."""

    documents: int
    dimension: int
    id_type: IdType = "string"
    encoding: str = "float32"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.documents}x{self.dimension}.{self.encoding}.{self.id_type}"

    def ids(self, random: np.random.Generator) -> list[str] | npt.NDArray[np.uint64]:
        """Random ids, as requests bring them."""
        numbers = random.integers(0, self.documents, CANDIDATES)
        return numbers.astype(np.uint64) if self.id_type == "integer" else number_ids(numbers)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Generation]:
    """The current generation of a store, warm."""
    store = Store(path)
    with contextlib.closing(store.open(store.current())) as generation:
        generation.warm()
        yield generation


def make(path: Path, corpus: Corpus) -> None:
    """Publishes a corpus, unless an earlier run did."""
    if not (path / "CURRENT").exists():
        settings: dict[str, Any] = {"fingerprint": "fe" * 32, "model": "8d" * 32, "fixed_step": False}
        settings |= {"id_type": corpus.id_type, "encoding": corpus.encoding, "dimension": corpus.dimension}
        publish(Store(path), corpus.documents, **settings)


def served_by(bundle: Bundle) -> dict[str, Any]:
    """Settings of a store with string ids that a bundle can serve; see `publish`."""
    settings: dict[str, Any] = {"fingerprint": bundle.fingerprint, "model": bundle.model, "id_type": "string"}
    return settings | {"dimension": bundle.dimension, "fixed_step": bundle.fixed_step}


def publish(store: Store, documents: int, *, first_text: int = 0, **settings: Any) -> str:  # noqa: ANN401  each its own
    """Publishes documents with random embeddings of length 1, a block of them again and again.

    Args:
        store: where to.
        documents: how many, numbered from 0 on.
        first_text: see `numbered`.
        settings: of `Store.writer`.

    Returns:
        The generation's name.
    """
    block_ND = np.random.default_rng(0).standard_normal((_BLOCK, settings["dimension"]), np.float32)
    block_ND /= np.linalg.norm(block_ND, axis=1, keepdims=True)
    with store.writer(**settings, software="bench") as writer:
        for start in range(0, documents, _BLOCK):
            numbers = np.arange(start, min(start + _BLOCK, documents))
            batch = numbered(numbers, first_text + start, integer=settings["id_type"] == "integer")
            writer.add(batch, block_ND[: len(numbers)])
        with writer.seal():
            pass
        return writer.publish({})


def numbered(numbers: npt.NDArray[np.int64], first_text: int, *, integer: bool = False) -> Batch:
    """Documents of these numbers; their texts are numbered too, from `first_text` on, and differ where numbers do."""
    digests = np.zeros((len(numbers), 2), np.uint64)
    digests[:, 0] = np.arange(first_text, first_text + len(numbers), dtype=np.uint64) * _ODD
    ids: Any = numbers.tolist() if integer else number_ids(numbers)
    times = np.full(len(numbers), 1_790_000_000_000)
    return Batch(ids=ids, digests=digests.view(DIGEST).reshape(-1), times=times, positions=numbers)


def number_ids(numbers: npt.NDArray[np.int64]) -> list[str]:
    """String ids of documents of these numbers."""
    return [number_id(number) for number in numbers.tolist()]


def rows_by_id(path: Path, corpus: Corpus) -> lmdb.Environment:
    """The same number of rows of the same length, each under its id."""
    size = 4 * corpus.documents * (4 * corpus.dimension + 64)
    if not (path / "data.mdb").exists():
        path.mkdir(parents=True)
        row = bytes(4 * corpus.dimension)
        with lmdb.open(str(path), map_size=size, sync=False) as env, env.begin(write=True) as transaction:
            for id_ in sorted(number_ids(np.arange(corpus.documents))):
                transaction.put(id_.encode(), row, append=True)
    return lmdb.open(str(path), map_size=size, readonly=True, lock=False)


def bundle(folder: Path, dimension: int) -> Bundle:
    """A model of this dimension whose towers nobody runs."""
    path = folder / f"bundle{dimension}"
    if not path.exists():
        tokenizer = folder / "tokenizer.json"
        save_triletter(tokenizer, letters="ascii")
        tower = TowerConfig(
            vocabulary=TriLetter.vocabulary,
            hidden=dimension,
            layers=1,
            heads=2,
            feed_forward=32,
            positions=12,
            embedding="trigrams",
            normalisation="l2",
        )
        config = TwinConfig(
            query=tower,
            document=tower,
            shared=True,
            query_max_tokens=8,
            document_max_tokens=12,
            crossings=("residual", "cosine"),
            residual=ResidualConfig(bottleneck=64),
        )
        export(TwinBert(config), path, tokenizer=tokenizer, source={"name": "bench"})
    return Bundle.open(path)
