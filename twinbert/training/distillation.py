"""One step of distillation: towers over a block's texts, crossings over its pairs, the losses that have a weight.

Shapes: Q queries, M documents and P pairs of a block, L tokens, D dimension.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twinbert.errors import UsageError
from twinbert.model.config import CrossingKind
from twinbert.model.tower import Tower
from twinbert.model.twin import TwinBert
from twinbert.training import losses


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """What is minimised: the weighted sum of the losses in `twinbert.training.losses`, over all crossings.

    Raises:
        UsageError: a weight is negative, all are 0, or the temperature is not above 0.
    """

    soft_cross_entropy: float = 1.0
    margin_mse: float = 0.0
    listwise_kl: float = 0.0
    in_batch_softmax: float = 0.0
    graded_cross_entropy: float = 0.0
    """Of human grades, where there are any."""
    temperature: float = 1.0
    """Of the first and the third."""

    def __post_init__(self) -> None:
        weights = {name: value for name, value in dataclasses.asdict(self).items() if name != "temperature"}
        if min(weights.values()) < 0 or not any(weights.values()) or not self.temperature > 0:
            raise UsageError(
                "losses: weights must be at least 0 and one of them above, the temperature above 0; "
                f"they are {dataclasses.asdict(self)}"
            )

    @property
    def teacher(self) -> bool:
        """Whether a teacher is needed."""
        return any((self.soft_cross_entropy, self.margin_mse, self.listwise_kl, self.in_batch_softmax))


class Distillation(nn.Module):
    """A TwinBERT as the training loop sees it: a block in, losses out.

    Args:
        twin: what is trained.
        weights: of the losses.
    """

    def __init__(self, twin: TwinBert, weights: LossWeights) -> None:
        super().__init__()
        self.twin, self._weights = twin, weights

    def forward(
        self,
        *,
        queries: Mapping[str, Any],
        documents: Mapping[str, Any],
        query_P: Tensor,
        document_P: Tensor,
        teacher_P: Tensor,
        grade_P: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of a block that `Blocks.collate` made: each by crossing and name, `loss` their weighted sum.

        Args:
            queries: texts for the query tower, as `twinbert.training.blocks.chunks` gives them.
            documents: likewise.
            query_P: int64, the query of each pair.
            document_P: int64, its document.
            teacher_P: float32 logits.
            grade_P: float32, NaN where no human has judged.
        """
        queries_QD = embed(self.twin.query, queries)
        documents_MD = embed(self.twin.document, documents)
        weights, T = self._weights, self._weights.temperature
        loss, terms = queries_QD.new_zeros(()), {}
        for kind in self.twin.config.crossings:
            student_P = self._logits(kind, queries_QD, documents_MD[document_P], query_P)
            found: dict[str, Tensor] = {}
            if weights.soft_cross_entropy:
                found["soft_cross_entropy"] = losses.soft_cross_entropy(student_P, teacher_P, temperature=T)
            if weights.margin_mse:
                found["margin_mse"] = losses.margin_mse(student_P, teacher_P, query_P)
            if weights.listwise_kl:
                found["listwise_kl"] = losses.listwise_kl(student_P, teacher_P, query_P, temperature=T)
            if weights.graded_cross_entropy:
                found["graded_cross_entropy"] = losses.graded_cross_entropy(student_P, grade_P)
            if weights.in_batch_softmax:
                labels = losses.in_batch_labels(
                    query_P, document_P, teacher_P, grade_P, queries=len(queries_QD), documents=len(documents_MD)
                )
                student_QM = self._every_pair(kind, queries_QD, documents_MD)
                found["in_batch_softmax"] = losses.in_batch_softmax(student_QM, *labels)
            for name, value in found.items():
                terms[f"{kind} {name}"] = value
                loss = loss + getattr(weights, name) * value
        return {"loss": loss, **terms}

    def _every_pair(self, kind: CrossingKind, queries_QD: Tensor, documents_MD: Tensor) -> Tensor:
        """Logits [Q, M]."""
        Q, M = len(queries_QD), len(documents_MD)
        pair_P = torch.arange(Q * M, device=queries_QD.device)
        return self._logits(kind, queries_QD, documents_MD[pair_P % M], pair_P // M).view(Q, M)

    def _logits(self, kind: CrossingKind, queries_QD: Tensor, documents_PD: Tensor, query_P: Tensor) -> Tensor:
        """float32 logits [P], also where towers are autocast: bf16 has three digits, and losses live on differences."""
        with torch.autocast(queries_QD.device.type, enabled=False):
            return self.twin.crossing(kind).logits(queries_QD, documents_PD, query_P)


def embed(tower: nn.Module, texts: Mapping[str, Any]) -> Tensor:
    """float32 embeddings [N, D] of texts in chunks of like length, in the order that the texts had."""
    chunks = texts["chunks"]
    if isinstance(tower, Tower):
        embeddings_ND = tower.several(chunks)
    else:
        embeddings_ND = torch.cat([tower(ids, mask) for ids, mask in chunks])
    return embeddings_ND.float()[texts["places"]]
