"""What a TwinBERT is made of. A configuration that exists is valid: making one checks it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from twinbert.errors import UsageError

Embedding = Literal["tokens", "trigrams"]
Pooling = Literal["cls", "weighted"]
Normalisation = Literal["l2", "none"]
Activation = Literal["tanh", "none"]
CrossingKind = Literal["cosine", "residual"]
ResidualStart = Literal["cosine", "plain"]


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
    embedding: Embedding = "tokens"
    """What a token is: one id, of WordPiece, or the ids of a word's trigrams, whose embeddings are summed."""
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
        for name, kinds in (("embedding", Embedding), ("pooling", Pooling), ("normalisation", Normalisation)):
            value, choices = getattr(self, name), get_args(kinds)
            if value not in choices:
                raise UsageError(f"tower: {name} is {value!r}; there are {' and '.join(choices)}")
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
class ResidualConfig:
    """The residual crossing layer.

    Raises:
        UsageError: a value is out of range.
    """

    bottleneck: int = 64
    """Width between its two matrices."""
    start: ResidualStart = "cosine"
    """`plain`: the logit is w · y + b alone; `cosine`: a cosine crossing's logit plus w · y, which starts at zero."""

    def __post_init__(self) -> None:
        if self.bottleneck < 1:
            raise UsageError(f"residual crossing: bottleneck is {self.bottleneck}; it must be at least 1")
        if self.start not in get_args(ResidualStart):
            raise UsageError(f"residual crossing: start is {self.start!r}; there are cosine and plain")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What makes a crossing layer's probabilities true: its logits become logit / temperature + bias (Platt scaling).

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 1.0
    """Above 1 it makes probabilities less sure."""
    bias: float = 0.0
    """Above 0 it makes all of them higher."""

    def __post_init__(self) -> None:
        if not (0 < self.temperature < math.inf and math.isfinite(self.bias)):
            raise UsageError(
                f"calibration: temperature is {self.temperature} and bias {self.bias}; "
                "the temperature must be above 0, and both finite"
            )


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
    residual: ResidualConfig = ResidualConfig()
    """The residual crossing layer, where there is one."""

    def __post_init__(self) -> None:
        for name, tower, tokens in (
            ("query", self.query, self.query_max_tokens),
            ("document", self.document, self.document_max_tokens),
        ):
            fewest = 1 if tower.embedding == "trigrams" else 3  # a word; [CLS], a token and [SEP]
            if not fewest <= tokens <= tower.positions:
                raise UsageError(
                    f"{name} tower: max_tokens is {tokens}; it must be {fewest} to {tower.positions}, its positions"
                )
        for field in ("embedding", "dimension", "pooling", "normalisation", "activation"):
            query, document = getattr(self.query, field), getattr(self.document, field)
            if query != document:
                raise UsageError(f"towers: {field} is {query} and {document}; it must be the same for both")
        if self.shared and self.query != self.document:
            raise UsageError("towers: they cannot share weights, their configurations differ")
        if not self.crossings:
            raise UsageError("crossings: at least one is needed")
        for kind in self.crossings:
            if kind not in get_args(CrossingKind):
                raise UsageError(f"crossings: {kind!r} is none; there are {' and '.join(get_args(CrossingKind))}")
        if len(set(self.crossings)) < len(self.crossings):
            raise UsageError(f"crossings: {', '.join(self.crossings)} names one twice")
