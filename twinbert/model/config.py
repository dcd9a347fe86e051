"""What a TwinBERT is made of. A configuration that exists is valid: making one checks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from twinbert.errors import UsageError

Pooling = Literal["cls", "weighted"]
Normalisation = Literal["l2", "none"]
Activation = Literal["tanh", "none"]
CrossingKind = Literal["cosine"]


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One tower.

    Raises:
        UsageError: a value is out of range, or does not go with another.
    """

    vocabulary: int
    """Number of token ids."""
    hidden: int
    """Width of a token's state."""
    layers: int
    """Transformer layers."""
    heads: int
    """Attention heads; divides `hidden`."""
    feed_forward: int
    """Width of a layer's feed-forward network."""
    positions: int
    """Position embeddings: the longest text that the tower can be given, in tokens."""
    pooling: Pooling = "weighted"
    """How token states become one vector: the first token's, or a learned weighted average."""
    projection: int | None = None
    """Width of the tanh projection after pooling; None: there is none."""
    normalisation: Normalisation = "none"
    """Whether embeddings are scaled to length 1."""
    dropout: float = 0.1
    """Probability with which training drops a value, in BERT's four places."""
    norm_epsilon: float = 1e-12
    """Added to the variance in layer normalisation."""

    def __post_init__(self) -> None:
        counts = {
            "vocabulary": self.vocabulary,
            "hidden": self.hidden,
            "layers": self.layers,
            "heads": self.heads,
            "feed_forward": self.feed_forward,
            "positions": self.positions,
            "projection": 1 if self.projection is None else self.projection,
        }
        for name, value in counts.items():
            if value < 1:
                raise UsageError(f"tower: {name} is {value}; it must be at least 1")
        if self.hidden % self.heads:
            raise UsageError(f"tower: {self.heads} heads do not divide a hidden width of {self.hidden}")
        if self.pooling not in ("cls", "weighted"):
            raise UsageError(f"tower: pooling is {self.pooling!r}; there are cls and weighted")
        if self.normalisation not in ("l2", "none"):
            raise UsageError(f"tower: normalisation is {self.normalisation!r}; there are l2 and none")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"tower: dropout is {self.dropout}; it must be at least 0 and below 1")
        if not self.norm_epsilon > 0:
            raise UsageError(f"tower: norm_epsilon is {self.norm_epsilon}; it must be above 0")

    @property
    def dimension(self) -> int:
        """D, the length of an embedding."""
        return self.hidden if self.projection is None else self.projection

    @property
    def activation(self) -> Activation:
        """What an embedding passes through last before it is normalised."""
        return "none" if self.projection is None else "tanh"


@dataclass(frozen=True, kw_only=True)
class TwinConfig:
    """Two towers and the crossing layers over their embeddings.

    Raises:
        UsageError: the towers do not go together.
    """

    query: TowerConfig
    """The query tower."""
    document: TowerConfig
    """The document tower."""
    query_max_tokens: int
    """Tokens that a query is cut to, special tokens included."""
    document_max_tokens: int
    """Tokens that a document is cut to, special tokens included."""
    shared: bool = False
    """Whether both towers are one set of weights."""
    crossings: tuple[CrossingKind, ...] = ("cosine",)
    """Crossing layers; the first is the default."""

    def __post_init__(self) -> None:
        for name, tower, tokens in (
            ("query", self.query, self.query_max_tokens),
            ("document", self.document, self.document_max_tokens),
        ):
            # [CLS], a token and [SEP].
            if not 3 <= tokens <= tower.positions:
                raise UsageError(
                    f"{name} tower: max_tokens is {tokens}; it must be 3 to {tower.positions}, its positions"
                )
        for field in ("dimension", "pooling", "normalisation", "activation"):
            query, document = getattr(self.query, field), getattr(self.document, field)
            if query != document:
                raise UsageError(f"towers: {field} is {query} and {document}; it must be the same for both")
        if self.shared and self.query != self.document:
            raise UsageError("towers: they cannot share weights, their configurations differ")
        if not self.crossings:
            raise UsageError("crossings: at least one is needed")
