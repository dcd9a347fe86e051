"""What scores pairs and searches a corpus in an evaluation: random order, BM25, and twins.

What else is in the table is trained: a cross-encoder is `teacher`, whatever its layers, and C-DSSM is `dssm`.

Shapes: N pairs or documents, Q queries, D dimension.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import bm25s
import numpy as np

from twinbert.bundle import TOWERS, Bundle, Tower
from twinbert.errors import UsageError
from twinbert.runtime import Floats, Ints, Runtime

_SCORED_AT_ONCE = 1 << 24  # numbers in one array of queries × documents: 64 MiB


class Random:
    """Scores that say nothing.

    Args:
        seed: the same seed gives the same scores for as many pairs.
    """

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def score(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Uniform scores [N] in [0, 1)."""
        return np.random.default_rng(self._seed).random(len(pairs)).astype(np.float32)


class Bm25:
    """BM25 as Lucene has it (Kamphuis et al. 2020), k1 1.5, b 0.75; lower-cased words of two letters, no stop words.

    Args:
        documents: the collection that word frequencies come from; only its documents can be scored.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        self._documents = list(dict.fromkeys(documents))
        self._number = {document: number for number, document in enumerate(self._documents)}
        words = _words(self._documents)
        self._index = bm25s.BM25() if any(words) else None  # which cannot be of no word
        if self._index is not None:
            self._index.index(words, show_progress=False)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Scores [N], from 0 up: no probabilities.

        Raises:
            UsageError: a document is not in the collection.
        """
        scores_N = np.empty(len(pairs), np.float32)
        rows: dict[str, list[int]] = {}
        for row, (query, _) in enumerate(pairs):
            rows.setdefault(query, []).append(row)
        for query, of_query in rows.items():
            try:
                numbers = [self._number[pairs[row][1]] for row in of_query]
            except KeyError as error:
                raise UsageError(
                    f"BM25: its collection lacks the document {str(error)[:80]}; index all of them"
                ) from None
            scores_N[of_query] = self._all(query)[numbers]
        return scores_N

    def retrieve(self, queries: Sequence[str], documents: Sequence[str], depth: int) -> list[list[str]]:
        """The best `depth` of the documents for each query, best first."""
        corpus = self if list(documents) == self._documents else Bm25(documents)
        return [[corpus._documents[row] for row in best(corpus._all(query), depth)] for query in queries]

    def _all(self, query: str) -> Floats:
        """Scores [N] of the whole collection."""
        (words,) = _words([query])
        if not words or self._index is None:
            return np.zeros(len(self._documents), np.float32)
        scores_N: Floats = self._index.get_scores(words)
        return scores_N


class Embedded:
    """Embeddings of texts, each text encoded once in the object's life.

    Args:
        encode: texts and a tower → embeddings [N, D].
    """

    def __init__(self, encode: Callable[[Sequence[str], Tower], Floats]) -> None:
        self._encode = encode
        self._known: dict[Tower, dict[str, Floats]] = {tower: {} for tower in TOWERS}

    def __call__(self, texts: Sequence[str], tower: Tower) -> Floats:
        """Embeddings [N, D] of at least one text."""
        known = self._known[tower]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, self._encode(new, tower), strict=True))
        return np.stack([known[text] for text in texts])


class Twin:
    """Two towers and a crossing layer, whatever computes them.

    Args:
        embed: the towers.
        cross: queries [Q, D], documents [N, D] and the query of each, int64 [N], → probabilities [N].
    """

    def __init__(self, embed: Embedded, cross: Callable[[Floats, Floats, Ints], Floats]) -> None:
        self._embed, self._cross = embed, cross

    def score(self, pairs: Sequence[tuple[str, str]]) -> Floats:
        """Probabilities [N] of the crossing layer."""
        queries, query_N = numbered([query for query, _ in pairs])
        documents_ND = self._embed([document for _, document in pairs], "document")
        return self._cross(self._embed(queries, "query"), documents_ND, query_N)

    def retrieve(self, queries: Sequence[str], documents: Sequence[str], depth: int) -> list[list[str]]:
        """The best `depth` of the documents by cosine for each query, best first."""
        queries_QD, documents_ND = (
            vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
            for vectors in (self._embed(queries, "query"), self._embed(documents, "document"))
        )
        step = max(1, _SCORED_AT_ONCE // len(documents))
        return [
            [documents[row] for row in best(scores_N, depth)]
            for start in range(0, len(queries), step)
            for scores_N in queries_QD[start : start + step] @ documents_ND.T
        ]


def twins_of(bundle: Bundle, *, threads: int | None = None) -> dict[str, Twin]:
    """A bundle's crossing layers as serving runs them, by name; they share their embeddings.

    Args:
        bundle: what to run.
        threads: threads that compute; by default one a core.

    Raises:
        BundleError: a file of the bundle cannot be loaded.
    """
    runtime = Runtime(bundle, towers=TOWERS, threads=threads or os.cpu_count() or 1)
    embed = Embedded(runtime.encode)
    return {name: Twin(embed, partial(runtime.cross, crossing=name)) for name in bundle.crossings}


def numbered(texts: Sequence[str]) -> tuple[list[str], Ints]:
    """The distinct texts in order of appearance, and which of them each text is, int64 [N]."""
    numbers: dict[str, int] = {}
    number_N = np.array([numbers.setdefault(text, len(numbers)) for text in texts], np.int64)
    return list(numbers), number_N


def best(scores_N: Floats, depth: int) -> Ints:
    """Positions of the `depth` highest scores, best first; of equal ones at the cut some."""
    depth = min(depth, len(scores_N))
    top = np.argpartition(-scores_N, depth - 1)[:depth] if depth else np.empty(0, np.int64)
    positions: Ints = top[np.argsort(-scores_N[top], kind="stable")]
    return positions


def _words(texts: Sequence[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return words
