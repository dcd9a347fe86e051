"""What a student is, and the weights that it starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from twinbert.errors import UsageError
from twinbert.model.checkpoint import bert_config, load_bert
from twinbert.model.config import CrossingKind, Pooling, ResidualConfig, TowerConfig, TwinConfig
from twinbert.model.projection import initialise_projection
from twinbert.model.twin import TwinBert
from twinbert.tokenizer import open_tokenizer_file, save_triletter
from twinbert.tokenizer.triletter import CLS, Letters
from twinbert.training.distillation import LossWeights
from twinbert.training.embedding import (
    SpaceConfig,
    chunks_on,
)
from twinbert.training.loop import Schedule
from twinbert.training.pairs import Pairs
from twinbert.training.teacher import locate

SAMPLE = 4096  # texts from whose vectors a projection starts, and pairs from whose targets crossings do
_CHECKED_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class NewTower:
    """A tower without pretrained weights; the defaults are the paper's published sample."""

    layers: int = 6
    hidden: int = 512
    heads: int = 8
    feed_forward: int = 512
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A student and how it learns.

    Raises:
        UsageError: two values do not go together.
    """

    tokenizer: Literal["wordpiece", "triletter"] = "wordpiece"
    """What towers read."""
    letters: Letters = "ascii"
    """Of tri-letters: the paper's, or those of every script."""
    checkpoint: str = "all-minilm-l6-v2"
    """A BERT, by directory or package: where WordPiece's vocabulary and, without `new`, the weights come from."""
    layers: tuple[int, ...] = ()
    """Which of the checkpoint's layers a tower has, from 0; empty: all."""
    new: NewTower | None = None
    """Towers of this shape and new weights."""
    shared: bool = True
    """Whether both towers are one set of weights."""
    pooling: Pooling = "weighted"
    """How token states become one vector."""
    projection: int | None = 128
    """D, the size of an embedding; without it, the hidden width."""
    projection_start: Literal["pca", "plain"] = "pca"
    """`pca`: from the principal components of the checkpoint's own vectors; `plain`: as new weights start."""
    crossings: tuple[CrossingKind, ...] = ("residual", "cosine")
    """Trained together; the first is the default when serving."""
    residual: ResidualConfig = field(default_factory=ResidualConfig)
    """The residual crossing."""
    query_max_tokens: int = 24
    """Tokens, of tri-letters words, that a query is cut to."""
    document_max_tokens: int = 48
    """Likewise of a document."""
    space: SpaceConfig | None = None
    """A first stage, of learning a bi-encoder's embedding space."""
    share: float = 1.0
    """Of the training queries whose pairs it learns from; its teacher and its texts stay the same."""
    losses: LossWeights = field(default_factory=LossWeights)
    """What the distillation minimises."""
    distil: Schedule = field(default_factory=lambda: Schedule(epochs=3))
    """Its steps and rates."""
    documents: int = 256
    """Documents of a block."""
    group: int = 16
    """Queries of a block that share documents."""
    together: int = 64
    """Texts that a tower reads at once."""

    def __post_init__(self) -> None:
        if min(self.documents, self.group, self.together) < 1:
            raise UsageError("student: documents, group and together must be at least 1")
        if not 0 < self.share <= 1:
            raise UsageError(f"student: share is {self.share}; it must be above 0 and at most 1")
        if self.tokenizer == "triletter" and self.new is None:
            raise UsageError("student: no checkpoint reads tri-letters; give the shape of new towers")
        if self.layers and self.new is not None:
            raise UsageError("student: new towers have no checkpoint's layers; give either")

    @property
    def needs_teacher(self) -> bool:
        """Whether its losses ask for a teacher's scores."""
        return self.losses.teacher

    def described(self) -> dict[str, Any]:
        """As runs record it: without a share of 1, of which those from before there were shares say nothing."""
        fields = dataclasses.asdict(self)
        if self.share == 1:
            del fields["share"]
        return fields


def check(config: StudentConfig, texts: Iterable[str]) -> None:
    """Finds out before any hour is spent whether a student can be made and can read every text.

    Raises:
        UsageError: the checkpoint is missing; or a text has no letter that tri-letters are made of.
        BundleError: a file of the checkpoint is damaged.
        UnsupportedError: it is another architecture.
    """
    _config_of(config)
    if config.tokenizer == "wordpiece":
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = open_tokenizer_file(_tokenizer(config, Path(folder)), max_tokens=config.document_max_tokens)
    stream = iter(texts)
    while part := list(islice(stream, _CHECKED_AT_ONCE)):
        for text, ids in zip(part, tokenizer.encode(part).ids, strict=True):
            if ids.max() <= CLS:
                raise UsageError(
                    f"the text {text[:80]!r} has no letter of the tri-letter tokenizer, so a tower would learn nothing "
                    'from it; remove it, or set letters to "unicode"'
                )


def _config_of(config: StudentConfig) -> TwinConfig:
    if config.new is None:
        tower = bert_config(locate(config.checkpoint), pooling=config.pooling, projection=config.projection)
        tower = dataclasses.replace(tower, layers=len(config.layers) or tower.layers)
    else:
        tower = TowerConfig(
            vocabulary=_vocabulary(config),
            positions=max(config.query_max_tokens, config.document_max_tokens),
            embedding="tokens" if config.tokenizer == "wordpiece" else "trigrams",
            pooling=config.pooling,
            projection=config.projection,
            **dataclasses.asdict(config.new),
        )
    return TwinConfig(
        query=tower,
        document=tower,
        query_max_tokens=config.query_max_tokens,
        document_max_tokens=config.document_max_tokens,
        shared=config.shared,
        crossings=config.crossings,
        residual=config.residual,
    )


def _vocabulary(config: StudentConfig) -> int:
    from twinbert.tokenizer import TriLetter

    if config.tokenizer == "triletter":
        return TriLetter.vocabulary
    return open_tokenizer_file(locate(config.checkpoint) / "tokenizer.json", max_tokens=3).vocabulary


def _tokenizer(config: StudentConfig, directory: Path) -> Path:
    if config.tokenizer == "wordpiece":
        return locate(config.checkpoint) / "tokenizer.json"
    path = directory / "tokenizer.json"
    save_triletter(path, letters=config.letters, cls=config.pooling == "cls")
    return path


def build(config: StudentConfig, output: Path, pairs: Pairs, seed: int) -> tuple[TwinBert, Path]:
    """A student with the weights that it starts from."""
    twin = TwinBert(_config_of(config))
    tokenizer = _tokenizer(config, output)
    if config.new is None:
        weights = locate(config.checkpoint) / "model.safetensors"
        for tower in {twin.query, twin.document}:
            load_bert(tower, weights, layers=config.layers or None)
        if config.projection is not None and config.projection_start == "pca":
            initialise_projection(twin, _pooled(twin, tokenizer, pairs, seed), seed=seed)
    elif not config.shared:
        twin.query.load_state_dict(twin.document.state_dict())
    return twin, tokenizer


@torch.inference_mode()
def _pooled(twin: TwinBert, tokenizer: Path, pairs: Pairs, seed: int) -> torch.Tensor:
    """Vectors of a sample of queries and documents before the projection."""
    generator = np.random.default_rng(seed)
    reader = open_tokenizer_file(tokenizer, max_tokens=twin.config.document_max_tokens)
    twin.eval()
    pooled = []
    for texts in (pairs.queries, pairs.documents):
        chosen = [texts[n] for n in generator.permutation(len(texts))[: SAMPLE // 2]]
        sample = chunks_on(torch.device("cpu"), reader.encode(chosen))
        pooled += [twin.document.pooled(ids, mask) for ids, mask in sample["chunks"]]
    return torch.cat(pooled)
