"""What a student is, and the weights that it starts from."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from twinbert.errors import UsageError
from twinbert.export import check_tokenizer
from twinbert.importing import import_twin
from twinbert.model.checkpoint import bert_config, load_bert
from twinbert.model.config import CrossingKind, Pooling, ResidualConfig, TowerConfig, TwinConfig
from twinbert.model.projection import initialise_projection
from twinbert.model.twin import TwinBert
from twinbert.tokenizer import open_tokenizer_file, save_triletter
from twinbert.tokenizer.triletter import Letters
from twinbert.training.data import Dataset
from twinbert.training.distillation import LossWeights
from twinbert.training.embedding import SpaceConfig, chunks_on
from twinbert.training.pairs import Pairs, part
from twinbert.training.readable import readable, require_letters
from twinbert.training.schedule import Schedule
from twinbert.training.teacher import locate

SEEDS = 2**32  # of which the random numbers of a step leave room for the rest
SAMPLE = 4096  # texts from whose vectors a projection starts, and pairs from whose targets crossings do


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
    """A BERT, by directory or package: where WordPiece's vocabulary and, without `new`, the weights come from. To
    tri-letters it gives its layers alone: embeddings of trigrams are new, and want a first stage."""
    layers: tuple[int, ...] = ()
    """Which of the checkpoint's layers a tower has, from 0; empty: all."""
    new: NewTower | None = None
    """Towers of this shape and new weights."""
    shared: bool = True
    """Whether both towers are one set of weights."""
    pooling: Pooling = "weighted"
    """How token states become one vector."""
    projection: int = 128
    """D, the size of an embedding; 0: there is no projection, and it is the hidden width."""
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
    seed: int | None = None
    """Of everything random in it but its first stage; None: the recipe's."""

    def __post_init__(self) -> None:
        if min(self.documents, self.group, self.together) < 1:
            raise UsageError("student: documents, group and together must be at least 1")
        if not 0 < self.share <= 1:
            raise UsageError(f"student: share is {self.share}; it must be above 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise UsageError(f"student: seed is {self.seed}; it must be from 0 to {SEEDS - 1}")
        if self.layers and self.new is not None:
            raise UsageError("student: new towers have no checkpoint's layers; give either")

    @property
    def needs_teacher(self) -> bool:
        """Whether its losses ask for a teacher's scores."""
        return self.losses.teacher

    def described(self) -> dict[str, Any]:
        """As runs record it: without a share of 1 and a seed of None, of which those from before these say nothing."""
        fields = dataclasses.asdict(self)
        if self.share == 1:
            del fields["share"]
        if self.seed is None:
            del fields["seed"]
        return fields


def check(config: StudentConfig, dataset: Dataset, pairs: Pairs) -> None:
    """Finds out before any hour is spent whether a student can be made and can read every graded text.

    It is made for real, of as few texts as tell whether there are enough.

    Args:
        config: the student.
        dataset: what it is taught on.
        pairs: of whose texts its projection starts; its share of them must have some.

    Raises:
        UsageError: a checkpoint is missing, or has not the layers; there are too few texts, or vectors are too narrow;
            a text has no letter that tri-letters are made of; or its share has no pair.
        BundleError: a file of a checkpoint is damaged.
        UnsupportedError: it is another architecture.
        ExportError: its tokenizer is not that of its weights.
    """
    if config.tokenizer == "triletter":
        require_letters(config.letters, dataset.graded_texts())
    part(pairs, config.share)
    count = config.projection
    few = dataclasses.replace(pairs, queries=pairs.queries[:count], documents=pairs.documents[:count])
    with tempfile.TemporaryDirectory() as folder:
        twin, path = build(config, Path(folder), few, seed=0)
        check_tokenizer(twin, path)
        tokenizer = open_tokenizer_file(path, max_tokens=config.document_max_tokens)
    if config.space is None:
        return
    width, dimension = import_twin(config.space.teacher).twin.config.document.dimension, twin.config.document.dimension
    texts = sum(1 for _ in islice(readable(tokenizer, dataset.texts()), dimension))
    if dimension > min(width, texts):
        raise UsageError(
            f"space: an embedding of {dimension} numbers learns from vectors as wide and texts as many; those of "
            f"{config.space.teacher} have {width}, and there are {texts} texts; lower the projection, or give more"
        )


def _config_of(config: StudentConfig) -> TwinConfig:
    if config.new is None:
        tower = bert_config(locate(config.checkpoint), pooling=config.pooling, projection=config.projection or None)
        tower = dataclasses.replace(tower, layers=len(config.layers) or tower.layers)
        if config.tokenizer == "triletter":
            tower = dataclasses.replace(
                tower, embedding="trigrams", vocabulary=_vocabulary(config), positions=_positions(config)
            )
    else:
        tower = TowerConfig(
            vocabulary=_vocabulary(config),
            positions=_positions(config),
            embedding="tokens" if config.tokenizer == "wordpiece" else "trigrams",
            pooling=config.pooling,
            projection=config.projection or None,
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


def _positions(config: StudentConfig) -> int:
    return max(config.query_max_tokens, config.document_max_tokens)


def _vocabulary(config: StudentConfig) -> int:
    from twinbert.tokenizer import TriLetter

    if config.tokenizer == "triletter":
        return TriLetter.vocabulary
    return open_tokenizer_file(locate(config.checkpoint) / "tokenizer.json", max_tokens=3).vocabulary


def _tokenizer(config: StudentConfig, directory: Path, *, writes: bool) -> Path:
    if config.tokenizer == "wordpiece":
        return locate(config.checkpoint) / "tokenizer.json"
    path = directory / "tokenizer.json"
    if writes:
        building = path.with_name(f".{path.name}.{os.getpid()}.building")
        save_triletter(building, letters=config.letters, cls=config.pooling == "cls")
        building.replace(path)
    return path


def build(
    config: StudentConfig, output: Path, pairs: Pairs, seed: int, *, writes: bool = True
) -> tuple[TwinBert, Path]:
    """A student with the weights that it starts from, and its tokenizer's file.

    Args:
        config: the student.
        output: folder for a tokenizer that no checkpoint has.
        pairs: of whose texts a projection starts.
        seed: of their choice.
        writes: false: another process writes the tokenizer, and has by now.

    Raises:
        UsageError: the checkpoint is missing, or has not the layers; or there are too few texts for the projection.
        BundleError: a file of the checkpoint is damaged.
        UnsupportedError: it is another architecture.
    """
    twin = TwinBert(_config_of(config))
    tokenizer = _tokenizer(config, output, writes=writes)
    if config.new is None:
        load_bert(twin.document, locate(config.checkpoint) / "model.safetensors", layers=config.layers or None)
    if not config.shared:
        twin.query.load_state_dict(twin.document.state_dict())
    if config.new is None and config.projection and config.projection_start == "pca":
        initialise_projection(twin, _pooled(twin, tokenizer, pairs, seed), seed=seed)
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
