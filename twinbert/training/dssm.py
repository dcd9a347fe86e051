"""C-DSSM, the twin network before TwinBERT: tri-letters, a convolution over words, max-pooling (Shen et al. 2014).

    l_i = sums of the tri-letters of words i − 1, i, i + 1, concatenated      word-n-gram layer
    h_i = tanh(W_c l_i + b_c)                                                 convolution, 300
    v   = max_i h_i, each feature by itself                                   max-pooling
    y   = tanh(W_s v + b_s)                                                   semantic layer, 128

A baseline: it is trained on the pairs, losses and blocks of a student, by the student's loop, and crossed by the same
cosine. Y. Shen, X. He, J. Gao, L. Deng, G. Mesnil: "A Latent Semantic Model with Convolutional-Pooling Structure for
Information Retrieval", CIKM 2014.

Shapes: B texts, L words, T trigrams of a word, K features of the convolution, D dimension.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from twinbert.errors import UsageError
from twinbert.model.checkpoint import load_weights, save_weights
from twinbert.model.config import CrossingKind, TowerConfig, TwinConfig
from twinbert.model.crossing import Crossing, make_crossing
from twinbert.model.tower import TrigramEmbedding
from twinbert.model.twin import TwinBert
from twinbert.tokenizer import TriLetter, save_triletter
from twinbert.tokenizer.triletter import Letters
from twinbert.training import calibration
from twinbert.training.blocks import Blocks
from twinbert.training.data import Dataset, Split
from twinbert.training.devices import new_accelerator
from twinbert.training.distillation import Distillation, LossWeights
from twinbert.training.loop import Task, fit
from twinbert.training.metrics import evaluate
from twinbert.training.pairs import Pairs
from twinbert.training.report import Report, Silent
from twinbert.training.runs import Run, replace_text
from twinbert.training.schedule import Schedule
from twinbert.training.student import Student
from twinbert.training.teacher import digest_of

WEIGHTS = "weights.safetensors"
WINDOW = 3  # words
_SHAPE = ("convolution", "dimension", "letters", "shared", "query_max_tokens", "document_max_tokens")
_INITIAL = 0.1  # of the tri-letters' vectors: about 20 of them add up to what tanh bends, not flattens


@dataclass(frozen=True, kw_only=True)
class DssmConfig:
    """A C-DSSM and how it learns; its sizes are the published ones."""

    convolution: int = 300
    """K, features of the convolution."""
    dimension: int = 128
    """D, the size of an embedding."""
    letters: Letters = "ascii"
    """Letters that tri-letters are made of."""
    shared: bool = True
    """Whether queries and documents have one network, as the students have by default."""
    query_max_tokens: int = 24
    """Words that a query is cut to."""
    document_max_tokens: int = 48
    """Likewise of a document."""
    losses: LossWeights = field(default_factory=LossWeights)
    """What is minimised."""
    distil: Schedule = field(default_factory=lambda: Schedule(epochs=3, rate=1e-3, weight_decay=0.0))
    """Steps and rates."""
    documents: int = 512
    """Documents of a block: a step costs mostly the optimiser of 44 million weights, so blocks are large."""
    together: int = 1024
    """Texts that the network reads at once: each time makes a gradient of the whole table, 5 times slower at 64."""

    @property
    def twin(self) -> TwinConfig:
        """The same in a TwinBERT's words: `hidden` is K, `projection` is D; layers and heads mean nothing."""
        tower = TowerConfig(
            vocabulary=TriLetter.vocabulary,
            hidden=self.convolution,
            layers=1,
            heads=1,
            feed_forward=1,
            positions=max(self.query_max_tokens, self.document_max_tokens),
            embedding="trigrams",
            projection=self.dimension,
        )
        return TwinConfig(
            query=tower,
            document=tower,
            query_max_tokens=self.query_max_tokens,
            document_max_tokens=self.document_max_tokens,
            shared=self.shared,
            crossings=("cosine",),
        )


class ConvolutionalTower(nn.Module):
    """Trigram ids → embeddings; see the module.

    Args:
        config: its widths.
    """

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        assert config.projection is not None
        # W_c, a block for each place in the window: multiplying sums of one-hot tri-letters by it is looking them up.
        self.convolution = TrigramEmbedding(config.vocabulary, WINDOW * config.hidden)
        self.bias = nn.Parameter(torch.zeros(config.hidden))
        self.semantic = nn.Linear(config.hidden, config.projection)
        nn.init.normal_(self.convolution.weight, std=_INITIAL)
        nn.init.xavier_uniform_(self.semantic.weight)
        nn.init.zeros_(self.semantic.bias)

    def forward(self, input_ids_BLT: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """Embeddings float32 [B, D] of texts; a word of padding is a word without tri-letters."""
        B, L, _ = input_ids_BLT.shape
        real_BL1 = attention_mask_BL.bool()[..., None]
        parts_BL3K = (self.convolution(input_ids_BLT) * real_BL1).view(B, L, WINDOW, -1)
        first, middle, last = parts_BL3K.unbind(2)
        # The word before takes the first block, the word after the last; beyond the ends there are none.
        before_BLK = functional.pad(first, (0, 0, 1, 0))[:, :-1]
        after_BLK = functional.pad(last, (0, 0, 0, 1))[:, 1:]
        features_BLK = torch.tanh(before_BLK + middle + after_BLK + self.bias)
        pooled_BK = features_BLK.masked_fill(~real_BL1, -torch.inf).amax(1)
        return torch.tanh(self.semantic(pooled_BK))  # [B, D]


class CDssm(nn.Module):
    """Two convolutional towers and a cosine crossing: what training asks of a TwinBERT, this has too.

    Args:
        config: its parts, in a TwinBERT's words.
    """

    def __init__(self, config: TwinConfig) -> None:
        super().__init__()
        self.config = config
        self.query = ConvolutionalTower(config.query)
        self.document = self.query if config.shared else ConvolutionalTower(config.document)
        self.crossings = nn.ModuleDict({kind: make_crossing(kind, config) for kind in config.crossings})

    def crossing(self, kind: CrossingKind) -> Crossing:
        """A crossing layer of this model."""
        return cast(Crossing, self.crossings[kind])


def train(
    config: DssmConfig, dataset: Dataset, pairs: Pairs, *, output: Path, seed: int, report: Report | None = None
) -> Student:
    """Trains a C-DSSM and calibrates it on dev.

    Args:
        config: the network.
        dataset: dev is measured after each epoch and calibrates.
        pairs: what is distilled, scored by the teacher where a loss needs it.
        output: folder: `distil` is the run, the rest what `load` reads; a network that is there is loaded.
        seed: of everything random.
        report: what is told.

    Raises:
        UsageError: `output` holds another run, or the pairs lack scores.
    """
    if config.losses.teacher and np.isnan(pairs.teacher_P).any():
        raise UsageError("C-DSSM: its losses need a teacher, and there are pairs that none has scored")
    accelerator = new_accelerator()
    described = {"dssm": dataclasses.asdict(config), "seed": seed, "pairs": pairs.digest()}
    run = Run(output / "distil", {**described, "dev": digest_of(dataset.dev)}, writes=accelerator.is_main_process)
    if (output / WEIGHTS).exists():
        return load(output)
    if accelerator.is_main_process:
        save_triletter(output / "tokenizer.json", letters=config.letters)
    accelerator.wait_for_everyone()
    torch.manual_seed(seed)
    student = _student(config, output)
    student.twin.to(accelerator.device)
    blocks = Blocks(
        pairs,
        student.tokenizers["query"].encode(pairs.queries),
        student.tokenizers["document"].encode(pairs.documents),
        documents=config.documents,
        together=config.together,
        seed=seed,
    )
    task = Task(
        name="C-DSSM",
        module=Distillation(student.twin, config.losses),
        batches=blocks.batches,
        collate=blocks.collate,
        validate=lambda: _measure(student, dataset.dev),
    )
    fit(task, config.distil, run=run, seed=seed, report=report or Silent(), accelerator=accelerator)
    if accelerator.is_main_process:
        _calibrate(student, dataset.dev)
        _save(config, student.twin, output)
        run.drop_checkpoint()
    accelerator.wait_for_everyone()
    return load(output)


def load(path: Path) -> Student:
    """A trained C-DSSM, which scores and embeds as a student does.

    Raises:
        UsageError: `path` holds none.
        BundleError: its weights are damaged.
    """
    try:
        config = DssmConfig(**json.loads((path / "dssm.json").read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path}: holds no trained C-DSSM ({error}); train one") from error
    student = _student(config, path)
    load_weights(student.twin, path / WEIGHTS)
    student.twin.to("cuda" if torch.cuda.is_available() else "cpu")
    return student


def _student(config: DssmConfig, folder: Path) -> Student:
    # Student, Distillation and the file of weights use of a TwinBERT only what a C-DSSM has too.
    return Student(cast(TwinBert, CDssm(config.twin)), folder / "tokenizer.json")


def _save(config: DssmConfig, twin: TwinBert, folder: Path) -> None:
    """Weights last: they say that training came to its end."""
    shape = {name: getattr(config, name) for name in _SHAPE}
    replace_text(folder / "dssm.json", json.dumps(shape, indent=2) + "\n")
    building = folder / "weights.building"
    save_weights(twin, building)
    building.rename(folder / WEIGHTS)


def _measure(student: Student, dev: Split) -> dict[str, float]:
    found = evaluate(student.score(dev.texts()), dev.pairs)
    return {name: found[name] for name in ("auc2", "ndcg10", "calibration_error")}


def _calibrate(student: Student, dev: Split) -> None:
    logits_N = student.logits(dev.texts())
    grades_N = np.array([pair.grade for pair in dev.pairs])
    student.twin.crossing("cosine").calibrate(calibration.fit(logits_N, grades_N))
