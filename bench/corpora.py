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

CANDIDATES = 100

_BATCH = 1 << 15
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
        return numbers.astype(np.uint64) if self.id_type == "integer" else _strings(numbers)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Generation]:
    """The current generation of a store, warm."""
    store = Store(path)
    with contextlib.closing(store.open(store.current())) as generation:
        generation.warm()
        yield generation


def _strings(numbers: npt.NDArray[np.int64]) -> list[str]:
    return [f"document-{number}" for number in numbers.tolist()]


def make(path: Path, corpus: Corpus) -> None:
    """Publishes random embeddings of length 1, unless an earlier run did."""
    if (path / "CURRENT").exists():
        return
    random = np.random.default_rng(0)
    settings: dict[str, Any] = {"fingerprint": "fe" * 32, "model": "8d" * 32, "fixed_step": False, "software": "bench"}
    settings |= {"id_type": corpus.id_type, "encoding": corpus.encoding, "dimension": corpus.dimension}
    with Store(path).writer(**settings) as writer:
        for start in range(0, corpus.documents, _BATCH):
            some = np.arange(start, min(start + _BATCH, corpus.documents))
            digests = np.zeros((len(some), 2), np.uint64)
            digests[:, 0] = (some.astype(np.uint64) + np.uint64(1)) * _ODD
            ids: Any = some.tolist() if corpus.id_type == "integer" else _strings(some)
            digest_N = digests.view(DIGEST).reshape(-1)
            batch = Batch(ids=ids, digests=digest_N, times=1_700_000_000_000 + some, positions=some)
            assert not writer.add_known(batch).any()
            vectors_ND = random.standard_normal((len(some), corpus.dimension), np.float32)
            writer.add(batch, vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True))
        with writer.seal():
            pass
        writer.publish({})


def rows_by_id(path: Path, corpus: Corpus) -> lmdb.Environment:
    """The same number of rows of the same length, each under its id."""
    size = 4 * corpus.documents * (4 * corpus.dimension + 64)
    if not (path / "data.mdb").exists():
        path.mkdir(parents=True)
        row = bytes(4 * corpus.dimension)
        with lmdb.open(str(path), map_size=size, sync=False) as env, env.begin(write=True) as transaction:
            for id_ in sorted(_strings(np.arange(corpus.documents))):
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
