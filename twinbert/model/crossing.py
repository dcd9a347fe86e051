"""Crossing layers: a query's and a document's embedding → the probability that the document is relevant.

Shapes: Q queries, N pairs, D dimension.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from twinbert.model.config import Calibration, CrossingKind, ResidualConfig, TwinConfig

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
    def calibrate(self, calibration: Calibration) -> None:
        """Makes `calibration` part of the parameters."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
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

    @torch.no_grad()
    def calibrate(self, calibration: Calibration) -> None:
        """Changes a and b."""
        self.a.div_(calibration.temperature)
        self.b.copy_(self.b / calibration.temperature + calibration.bias)

    def description(self) -> dict[str, Any]:
        """The learned a and b."""
        return {"a": self.a.item(), "b": self.b.item()}


class ResidualCrossing(Crossing):
    """p = σ(s · w · y + b) with y = relu(W₂ relu(W₁ x) + x) and x = max(q, d) elementwise.

    The relevance version of arXiv 2002.06275, in the form that code descending from it has published. W₁ and W₂, which
    have biases, meet in a bottleneck. With a start of `cosine`, which is ours, the logit is
    a · cos(q, d) + b + s · w · y and w starts at 0: a cosine crossing that learns what it lacks.

    Args:
        config: its parts.
        dimension: D.
        scale: s, a constant: √D for embeddings of length 1, or else 1. The parts of such embeddings, and so of y, are
            about 1/√D, and w would have to grow to √D before the branch mattered.
    """

    def __init__(self, config: ResidualConfig, dimension: int, scale: float = 1.0) -> None:
        super().__init__()
        self.config, self.scale = config, scale
        self.down = nn.Linear(dimension, config.bottleneck)
        self.up = nn.Linear(config.bottleneck, dimension)
        self.output = nn.Linear(dimension, 1, bias=config.start == "plain")
        self.cosine = CosineCrossing() if config.start == "cosine" else None
        if self.cosine is not None:
            nn.init.zeros_(self.output.weight)

    def logits(self, queries_QD: Tensor, documents_ND: Tensor, task_N: Tensor) -> Tensor:
        """[N]: s · w · y + b, where b is that of the cosine if there is one."""
        largest_ND = torch.maximum(queries_QD[task_N], documents_ND)
        residual_ND = torch.relu(self.up(torch.relu(self.down(largest_ND))) + largest_ND)
        logits_N: Tensor = functional.linear(residual_ND, self.scale * self.output.weight, self.output.bias).squeeze(-1)
        if self.cosine is not None:
            logits_N = logits_N + self.cosine.logits(queries_QD, documents_ND, task_N)
        return logits_N

    @torch.no_grad()
    def calibrate(self, calibration: Calibration) -> None:
        """Changes w and b, and a where there is a cosine."""
        self.output.weight /= calibration.temperature
        if self.cosine is not None:
            self.cosine.calibrate(calibration)
        else:
            self.output.bias.copy_(self.output.bias / calibration.temperature + calibration.bias)

    def description(self) -> dict[str, Any]:
        """Its configuration, and the learned a and b of a cosine."""
        learned = {} if self.cosine is None else self.cosine.description()
        return {"architecture": dataclasses.asdict(self.config), **learned}


def make_crossing(kind: CrossingKind, config: TwinConfig) -> Crossing:
    """A new crossing layer of a TwinBERT."""
    if kind == "cosine":
        return CosineCrossing()
    tower = config.document
    scale = math.sqrt(tower.dimension) if tower.normalisation == "l2" else 1.0
    return ResidualCrossing(config.residual, tower.dimension, scale)
