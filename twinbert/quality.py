"""What a bundle loses against the model that it was made from, and against itself when its embeddings are stored or its
queries are encoded by another engine.

Shapes: Q queries, N documents or pairs, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from store.encoding import ENCODINGS, codec
from twinbert.bundle import TOWERS, Tower
from twinbert.model.twin import TwinBert
from twinbert.runtime import Floats, Ints, Runtime
from twinbert.samples import DOCUMENTS, QUERIES

TOP = 10


def parity(twin: TwinBert, runtime: Runtime) -> dict[str, float]:
    """Largest absolute differences of embeddings and of scores between torch and the runtime.

    Both towers read every sample text, each alone and all in one call. Every crossing scores every pair, each side from
    its own embeddings, so that what a crossing makes of the towers' differences is in its scores.

    Args:
        twin: the model, in evaluation mode, on the CPU.
        runtime: both towers of the bundle made from it.

    Returns:
        `embeddings` and `scores`; NaN where either side gave NaN.
    """
    texts = [*QUERIES, *DOCUMENTS]
    expected = {tower: _embed(twin, runtime, tower, texts) for tower in TOWERS}
    together = {tower: runtime.encode(texts, tower) for tower in TOWERS}
    embeddings = []
    for tower in TOWERS:
        alone_ND = np.concatenate([runtime.encode([text], tower) for text in texts])
        embeddings += [_largest(together[tower], expected[tower]), _largest(alone_ND, expected[tower])]
    task_N, document_N = _every_pair(len(texts), len(texts))
    scores = []
    for kind in twin.config.crossings:
        pairs = (expected["query"], expected["document"][document_N], task_N)
        with torch.inference_mode():
            expected_N = twin.crossing(kind)(*map(torch.from_numpy, pairs)).numpy()
        scores_N = runtime.cross(together["query"], together["document"][document_N], task_N, kind)
        scores.append(_largest(scores_N, expected_N))
    return {"embeddings": float(np.max(embeddings)), "scores": float(np.max(scores))}


def encodings(runtime: Runtime) -> dict[str, dict[str, float]]:
    """What each lossy stored encoding costs the default crossing's scores of the sample texts.

    Returns:
        For each encoding the largest and the mean absolute difference of a score, and `top10_overlap`, the share of a
        query's ten best documents that stay among its ten best (mean over the queries).
    """
    queries_QD = runtime.encode(QUERIES, "query")
    documents_ND = runtime.encode(DOCUMENTS, "document")
    task_N, document_N = _every_pair(len(QUERIES), len(DOCUMENTS))

    def scores(stored_ND: Floats) -> Floats:
        return runtime.cross(queries_QD, stored_ND[document_N], task_N).reshape(len(QUERIES), len(DOCUMENTS))

    exact_QN = scores(documents_ND)
    costs = {}
    for name in ENCODINGS:
        if name == "float32":
            continue
        stored = codec(name, runtime.bundle.dimension, fixed_step=runtime.bundle.fixed_step)
        stored_QN = scores(stored.decode(*stored.encode(documents_ND)))
        costs[name] = _score_costs(stored_QN, exact_QN)
    return costs


def engine_costs(
    runtime: Runtime, exact: Runtime, queries: Sequence[str], documents: Sequence[str]
) -> dict[str, float]:
    """What an engine costs against float32, over every pair of queries and documents, by the default crossing.

    Args:
        runtime: a bundle's query tower on the engine.
        exact: both towers of the bundle in float32.
        queries: texts that are not blank.
        documents: the same.

    Returns:
        What `encodings` measures; the smallest and the mean cosine between a query's two embeddings; and `company`, the
        largest difference between what the engine makes of a query alone and among all others.
    """
    embeddings_QD, exact_QD = runtime.encode(queries), exact.encode(queries)
    alone_QD = np.concatenate([runtime.encode([query]) for query in queries])
    documents_ND = exact.encode(documents, "document")
    task_N = np.zeros(len(documents), dtype=np.int64)

    def scores(encoded_QD: Floats) -> Floats:
        return np.stack([exact.cross(query_D[None], documents_ND, task_N) for query_D in encoded_QD])

    lengths_Q = np.linalg.norm(embeddings_QD, axis=1) * np.linalg.norm(exact_QD, axis=1)
    cosine_Q = (embeddings_QD * exact_QD).sum(1) / lengths_Q
    return {
        **_score_costs(scores(embeddings_QD), scores(exact_QD)),
        "cosine_smallest": round(float(cosine_Q.min()), 4),
        "cosine_mean": round(float(cosine_Q.mean()), 4),
        "company": _largest(alone_QD, embeddings_QD),
    }


def _score_costs(scores_QN: Floats, exact_QN: Floats) -> dict[str, float]:
    difference_QN = np.abs(scores_QN - exact_QN)
    kept = [len(np.intersect1d(_best(a), _best(b))) / TOP for a, b in zip(scores_QN, exact_QN, strict=True)]
    return {
        "score_largest": rounded(difference_QN.max()),
        "score_mean": rounded(difference_QN.mean()),
        "top10_overlap": round(float(np.mean(kept)), 3),
    }


@torch.inference_mode()
def _embed(twin: TwinBert, runtime: Runtime, name: Tower, texts: list[str]) -> Floats:
    """Embeddings [N, D] by torch, one text at a time, so that no padding is in them."""
    tower = twin.query if name == "query" else twin.document
    tokens = runtime.tokenize(texts, name)
    alone = (map(torch.from_numpy, tokens.take([text]).padded()) for text in range(len(texts)))
    embeddings_ND: Floats = torch.cat([tower(*one) for one in alone]).numpy()
    return embeddings_ND


def _every_pair(queries: int, documents: int) -> tuple[Ints, Ints]:
    """Query and document of each of the pairs [queries × documents]."""
    task_N, document_N = np.divmod(np.arange(queries * documents, dtype=np.int64), documents)
    return task_N, document_N


def _best(scores_N: Floats) -> Ints:
    return np.argsort(-scores_N, kind="stable")[:TOP]


def _largest(left: Floats, right: Floats) -> float:
    return float(np.abs(left - right).max())


def rounded(value: float | np.floating[Any]) -> float:
    """Two digits: the rest is the machine's, and would make every machine's bundle another model."""
    return float(f"{value:.1e}")
