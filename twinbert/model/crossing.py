"""Crossing layers: a query's and a document's embedding → the probability that the document is relevant.

Shapes: Q queries, N pairs, D dimension.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinbert.model.config import CrossingKind

# Shorter vectors count as zero, whose cosine with anything is 0.
SHORTEST = 1e-12


class Crossing(nn.Module, ABC):
    """What every crossing layer offers."""

    def forward(self, queries_QD: Tensor, documents_ND: Tensor, task_N: Tensor) -> Tensor:
        """Probabilities [N] of documents, each for the query that int64 `task_N` names."""
        return torch.sigmoid(self.logits(queries_QD, documents_ND, task_N))

    @abstractmethod
    def logits(self, queries_QD: Tensor, documents_ND: Tensor, task_N: Tensor) -> Tensor:
        """The probabilities' logits [N]: what losses are computed from."""

    @abstractmethod
    def description(self) -> dict[str, float]:
        """What bundle.json tells of the layer beside its file."""


class CosineCrossing(Crossing):
    """p = σ(a · cos(q, d) + b), a and b learned (the retrieval version of arXiv 2002.06275)."""

    def __init__(self, a: float = 10.0, b: float = -5.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))
        self.b = nn.Parameter(torch.tensor(b))

    def logits(self, queries_QD: Tensor, documents_ND: Tensor, task_N: Tensor) -> Tensor:
        """[N]: a · cos(q, d) + b."""
        # Queries are few and documents many: only the queries are normalised before they are multiplied.
        query_ND = functional.normalize(queries_QD, dim=-1, eps=SHORTEST)[task_N]
        lengths_N = torch.linalg.vector_norm(documents_ND, dim=-1).clamp_min(SHORTEST)
        cosine_N = (query_ND * documents_ND).sum(-1) / lengths_N
        logits_N: Tensor = self.a * cosine_N + self.b
        return logits_N

    def description(self) -> dict[str, float]:
        """The learned a and b."""
        return {"a": self.a.item(), "b": self.b.item()}


CROSSINGS: Mapping[CrossingKind, type[Crossing]] = {"cosine": CosineCrossing}
