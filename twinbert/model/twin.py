"""TwinBERT: two towers that never see each other's input, and the crossing layers over their embeddings.

Shapes: Q queries, N documents, L tokens, T trigrams of a token where towers read trigrams.
"""

from __future__ import annotations

from torch import Tensor, nn

from twinbert.model.config import CrossingKind, TwinConfig
from twinbert.model.crossing import Crossing, make_crossing
from twinbert.model.tower import Tower


class TwinBert(nn.Module):
    """The whole model; towers that share weights are one module.

    Args:
        config: its parts.
    """

    def __init__(self, config: TwinConfig) -> None:
        super().__init__()
        self.config = config
        self.query = Tower(config.query)
        self.document = self.query if config.shared else Tower(config.document)
        self.crossings = nn.ModuleDict({kind: make_crossing(kind, config) for kind in config.crossings})

    def crossing(self, kind: CrossingKind) -> Crossing:
        """A crossing layer of this model."""
        crossing = self.crossings[kind]
        assert isinstance(crossing, Crossing)
        return crossing

    def forward(
        self, query: tuple[Tensor, Tensor], document: tuple[Tensor, Tensor], task_N: Tensor, crossing: CrossingKind
    ) -> Tensor:
        """Probabilities [N] of documents, each for the query that `task_N` names.

        Args:
            query: input_ids, int64 [Q, L] or [Q, L, T], and attention_mask, int64 [Q, L].
            document: the same of documents.
            task_N: int64, which query each document is a candidate of.
            crossing: which crossing layer.
        """
        scores_N: Tensor = self.crossing(crossing)(self.query(*query), self.document(*document), task_N)
        return scores_N
