"""sentence-transformers and numpy in the caller's own process: no server at all.

Runs where sentence-transformers is, so it imports nothing that only our own environment has.
"""

from __future__ import annotations

from collections.abc import Sequence

from sentence_transformers import SentenceTransformer

from bench.load import Call
from bench.systems.documents import crossing
from bench.workloads import Task


async def connect(model: str, documents: str) -> Call:
    """The model of a directory, in torch as it comes."""
    encoder, cross = SentenceTransformer(model, device="cpu"), crossing(documents)

    async def call(tasks: Sequence[Task]) -> list[list[float]]:
        queries_QD = encoder.encode([query for query, _ in tasks], normalize_embeddings=True, show_progress_bar=False)
        return cross(tasks, queries_QD)

    return call
