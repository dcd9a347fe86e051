"""A sample of the documents of a refresh, encoded again before the generation is published.

Shapes: n sampled documents, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from store.encoding import Codec
from store.reader import Generation
from twinbert.errors import MismatchError
from twinbert.runtime import Floats, Runtime

_SIZE = 64
# Of a corpus of huge texts the sample would not fit in memory: longer ones are left out, like those that are forgotten;
# their text is "".
_MAX_CHARACTERS = 1 << 20
# Of which company a text is encoded in changes its embedding by 1e-7; a wrong row differs by far more than this.
_TOLERANCE = 1e-5


class Sample:
    """Up to 64 documents, each document of the refresh with the same chance; the same input gives the same sample."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._seen = 0
        self._keys: list[str | int] = []
        self._texts: dict[str | int, str] = {}

    @property
    def texts(self) -> list[str]:
        """The texts of the sampled documents, but for those left out."""
        return [text for text in self._texts.values() if text]

    def offer(self, keys: Sequence[str | int], texts: Sequence[str]) -> None:
        """Shows it the next documents; one with a sampled key takes the place of the earlier one, as in the store."""
        slots = self._random.integers(0, np.arange(self._seen, self._seen + len(keys)), endpoint=True)
        self._seen += len(keys)
        for place in np.flatnonzero(slots < _SIZE).tolist():
            key = keys[place]
            if key in self._texts:
                continue
            if len(self._keys) < _SIZE:
                self._keys.append(key)
            else:
                slot = int(slots[place])
                del self._texts[self._keys[slot]]
                self._keys[slot] = key
            self._texts[key] = ""
        last = dict(zip(keys, texts, strict=True))
        for key in self._texts.keys() & last.keys():
            self._texts[key] = last[key] if len(last[key]) <= _MAX_CHARACTERS else ""

    def forget(self, keys: Iterable[str | int]) -> None:
        """These documents are not in the store after all, unless they come again."""
        for key in self._texts.keys() & set(keys):
            self._texts[key] = ""

    def check(self, generation: Generation, runtime: Runtime, workers: Executor) -> dict[str, Any]:
        """Compares the stored embeddings with fresh ones, each text encoded alone.

        Returns:
            What the encoding costs, for the manifest: `sample` documents, `max_embedding_difference`, and of the scores
            of every sampled text as a query against every sampled document `max_score_difference` and
            `mean_score_difference`.

        Raises:
            MismatchError: a stored embedding is not the document's.
        """
        keys = [key for key in self._keys if self._texts[key]]
        if not keys:
            return {"sample": 0}
        texts = [self._texts[key] for key in keys]
        queries = workers.submit(runtime.encode, texts, "query")
        exact_nD = np.concatenate(list(workers.map(lambda text: runtime.encode([text], "document"), texts)))
        stored_nD = _stored(generation, keys)
        differences_nD = np.abs(stored_nD - exact_nD)
        excess_n = (differences_nD - _stated_error(generation.codec, exact_nD)).max(axis=1)
        allowed_n = _TOLERANCE * np.maximum(1, np.abs(exact_nD).max(axis=1))
        if (excess_n > allowed_n).any():
            worst = int(np.argmax(excess_n / allowed_n))
            raise MismatchError(
                f"nothing was published: the stored embedding of document {keys[worst]!r} differs by "
                f"{differences_nD[worst].max():.2g} from encoding its text again; what this and interrupted refreshes "
                "encoded is discarded: refresh again, and if it comes back a row of the current generation is damaged "
                "or comes from a machine whose engine computes otherwise: refresh into a new store"
            )
        scores = np.abs(
            _all_scores(runtime, queries.result(), stored_nD) - _all_scores(runtime, queries.result(), exact_nD)
        )
        return {
            "sample": len(keys),
            "max_embedding_difference": _rounded(differences_nD.max()),
            "max_score_difference": _rounded(scores.max()),
            "mean_score_difference": _rounded(scores.mean()),
        }


def _stored(generation: Generation, keys: Sequence[Any]) -> Floats:
    located = generation.locate(
        np.array(keys, dtype=np.uint64) if generation.manifest.id_type == "integer" else list(keys)
    )
    if not located.found.all():
        missing = keys[int(np.argmin(located.found))]
        raise MismatchError(f"nothing was published: document {missing!r} was added and cannot be found again")
    return generation.read(located)


def _stated_error(codec: Codec, exact_nD: Floats) -> Floats:
    """What the codec says it changes a value by at most: see `store.encoding`."""
    magnitudes_nD = np.abs(exact_nD)
    if codec.name == "float16":
        return magnitudes_nD * np.float32(2**-11) + np.float32(2**-25)
    if codec.fixed_step:
        return np.full_like(magnitudes_nD, 1 / 255)
    if codec.has_scales:
        return np.broadcast_to(magnitudes_nD.max(axis=1, keepdims=True) / 254, magnitudes_nD.shape)
    return np.zeros_like(magnitudes_nD)


def _all_scores(runtime: Runtime, queries_nD: Floats, documents_nD: Floats) -> Floats:
    """Every query against every document, by the bundle's default crossing: [n * n]."""
    n = len(queries_nD)
    return runtime.cross(queries_nD, np.tile(documents_nD, (n, 1)), np.repeat(np.arange(n, dtype=np.int64), n))


def _rounded(number: np.floating[Any]) -> float:
    """Three digits, so that the manifest says no more than was measured."""
    return float(f"{number:.3g}")
