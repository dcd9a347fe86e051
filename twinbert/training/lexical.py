"""The lexical part of a teacher: a small network that grades a pair by how the query's words stand in the document.

Some ten thousand grades teach a cross-encoder little about spelling, numbers and compounds, which its word pieces hide;
`features` say them outright, for some seconds of training.

Shapes: N pairs, B pairs of a batch, K features.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from store.files import replace_file
from twinbert.bundle import describe_file
from twinbert.errors import BundleError, UsageError
from twinbert.training.data import Split
from twinbert.training.devices import Precision, new_accelerator
from twinbert.training.features import FEATURES, VERSION, features
from twinbert.training.loop import Task, fit
from twinbert.training.report import Report, Silent
from twinbert.training.runs import Run, locked
from twinbert.training.schedule import Schedule
from twinbert.training.teacher import Floats, TextPair, digest_of, watch

_FARTHEST = 4.0  # standard deviations from the mean: what is farther counts as that far
_LEAST_SPREAD = 1e-6
_TOLD_EVERY = 10_000  # pairs
_FILE = "lexical.safetensors"


@dataclass(frozen=True, kw_only=True)
class LexicalConfig:
    """The network and its training.

    Raises:
        UsageError: a value is out of range.
    """

    hidden: int = 64
    """Units of each of its two layers."""
    dropout: float = 0.1
    """Share of units that a step leaves out."""
    max_words: int = 64
    """Words of a query, and of a document, that are looked at: the cross-encoders and students read no more either."""
    batch: int = 512
    """Pairs of a step, of all processes together."""
    schedule: Schedule = field(default_factory=lambda: Schedule(epochs=20, rate=2e-3, log_steps=100))
    """Steps and rates."""

    def __post_init__(self) -> None:
        if min(self.hidden, self.max_words, self.batch) < 1 or not 0 <= self.dropout < 1:
            raise UsageError("lexical: hidden, max_words and batch must be at least 1, dropout at least 0 and below 1")


class Network(nn.Module):
    """Features → a logit whose sigmoid is the grade: standardised, then two hidden layers.

    Args:
        config: its sizes.
    """

    def __init__(self, config: LexicalConfig) -> None:
        super().__init__()
        self.register_buffer("mean_K", torch.zeros(len(FEATURES)))
        self.register_buffer("scale_K", torch.ones(len(FEATURES)))
        layers: list[nn.Module] = []
        width = len(FEATURES)
        for _ in range(2):
            layers += [nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)]
            width = config.hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def standardise(self, features_NK: Floats) -> None:
        """Sets how features are standardised; one that never differs says nothing, later neither."""
        spread_K = features_NK.std(0, dtype=np.float64)
        scale_K = np.divide(1, spread_K, out=np.zeros_like(spread_K), where=spread_K > _LEAST_SPREAD)
        self.get_buffer("mean_K").copy_(torch.from_numpy(features_NK.mean(0, dtype=np.float64)))
        self.get_buffer("scale_K").copy_(torch.from_numpy(scale_K))

    def logits(self, features_NK: Tensor) -> Tensor:
        """float32 [N] of features float32 [N, K]."""
        with torch.autocast(features_NK.device.type, enabled=False):
            standard_NK = (features_NK - self.get_buffer("mean_K")) * self.get_buffer("scale_K")
            logits_N: Tensor = self.layers(standard_NK.clamp(-_FARTHEST, _FARTHEST)).squeeze(-1)
        return logits_N

    def forward(self, features_BK: Tensor, grades_B: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy with the grade as a soft target."""
        return {"loss": functional.binary_cross_entropy_with_logits(self.logits(features_BK), grades_B)}


class Lexical:
    """A trained network.

    Args:
        network: it.
        max_words: of a text that it knows.
        digest: what names it in caches.
    """

    def __init__(self, network: Network, max_words: int, digest: str) -> None:
        self.network, self.max_words, self.digest = network.eval(), max_words, digest

    def score(self, pairs: Sequence[TextPair], *, precision: Precision = "float32") -> Floats:
        """Logits float32 [N] of (query, document) pairs, in float32 always; their sigmoid is the expected grade."""
        return _logits(self.network, _table(pairs, self.max_words))

    def cache_name(self, precision: Precision) -> str:
        """What names a cache of its scores."""
        return self.digest

    def order(self, query: str, document: str) -> tuple[int, str]:
        """Any is as good."""
        return len(query) + len(document), ""


def train(
    config: LexicalConfig,
    train_split: Split,
    dev: Split,
    *,
    output: Path,
    seed: int,
    report: Report | None = None,
) -> Lexical:
    """Trains a network on grades: binary cross-entropy with the grade as a soft target.

    Args:
        config: how.
        train_split: what is learned.
        dev: what is measured after each epoch.
        output: folder of the run; a network that is there is loaded.
        seed: of everything random.
        report: what is told.

    Raises:
        UsageError: `output` holds another run.
    """
    report = report or Silent()
    accelerator = new_accelerator()
    described = {"lexical": dataclasses.asdict(config), "features": VERSION, "seed": seed}
    run = Run(output, described | {"data": digest_of(train_split, dev)}, writes=accelerator.is_main_process)
    with locked(output, report, writes=accelerator.is_main_process):
        accelerator.wait_for_everyone()  # or some would look for it before another process has made it
        if not (output / _FILE).exists():
            _fit(config, train_split, dev, run=run, seed=seed, report=report, accelerator=accelerator)
        accelerator.wait_for_everyone()
    return load(output)


def load(folder: Path) -> Lexical:
    """A trained network.

    Raises:
        UsageError: `folder` holds none.
        BundleError: it is damaged, or of another version's features.
    """
    path = folder / _FILE
    if not path.exists():
        raise UsageError(f"{folder}: has no trained lexical network yet; make it with `twinbert train teacher`")
    remedy = f"remove {folder} and train it again with `twinbert train teacher`"
    try:
        with safetensors.safe_open(path, "pt") as file:
            kept = json.loads(file.metadata()["lexical"])
        if kept["features"] != VERSION:
            raise BundleError(f"{path}: reads features of version {kept['features']}, not {VERSION}; {remedy}")
        network = Network(LexicalConfig(hidden=kept["hidden"]))
        network.load_state_dict(safetensors.torch.load_file(path))
        return Lexical(network, kept["max_words"], describe_file(path)["sha256"])
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise BundleError(f"{path}: is damaged ({error}); {remedy}") from error


def _fit(
    config: LexicalConfig,
    train_split: Split,
    dev: Split,
    *,
    run: Run,
    seed: int,
    report: Report,
    accelerator: accelerate.Accelerator,
) -> None:
    torch.manual_seed(seed)
    network = Network(config)
    features_NK = _table(train_split.texts(), config.max_words, report)
    network.standardise(features_NK)
    processes = accelerator.num_processes
    # Each takes its part of a batch; of few pairs the batches are smaller, so that each has one.
    data = _Rows(features_NK, train_split, max(1, min(config.batch, len(features_NK)) // processes), seed)
    dev_NK = _table(dev.texts(), config.max_words)
    task = Task(
        name="lexical",
        module=network,
        batches=data.batches,
        collate=data.collate,
        validate=lambda: watch(_logits(network, dev_NK), dev),
    )
    fit(task, config.schedule, run=run, seed=seed, report=report, accelerator=accelerator)
    if accelerator.is_main_process:
        kept = {"hidden": config.hidden, "max_words": config.max_words, "features": VERSION}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
        replace_file(run.path / _FILE, safetensors.torch.save(tensors, {"lexical": json.dumps(kept)}))
        run.drop_checkpoint()


class _Rows:
    """The train split as batches."""

    def __init__(self, features_NK: Floats, split: Split, batch: int, seed: int) -> None:
        self._features_NK = torch.from_numpy(features_NK)
        self._grades_N = torch.tensor([pair.grade for pair in split.pairs], dtype=torch.float32)
        self._batch, self._seed = batch, seed

    def batches(self, epoch: int) -> list[list[int]]:
        order = np.random.default_rng((self._seed, epoch)).permutation(len(self._grades_N)).tolist()
        return [order[start : start + self._batch] for start in range(0, len(order), self._batch)]

    def collate(self, rows: list[int]) -> Mapping[str, Any]:
        return {"features_BK": self._features_NK[rows], "grades_B": self._grades_N[rows]}


def _table(pairs: Sequence[TextPair], max_words: int, report: Report | None = None) -> Floats:
    """Features float32 [N, K] of pairs."""
    features_NK = np.empty((len(pairs), len(FEATURES)), dtype=np.float32)
    for row, (query, document) in enumerate(pairs):
        features_NK[row] = features(query, document, max_words=max_words)
        if report is not None and ((row + 1) % _TOLD_EVERY == 0 or row + 1 == len(pairs)):
            report.progress("lexical features", row + 1, len(pairs), unit="pairs")
    return features_NK


@torch.inference_mode()
def _logits(network: Network, features_NK: Floats) -> Floats:
    device = next(network.parameters()).device
    logits_N: Floats = network.logits(torch.from_numpy(features_NK).to(device)).cpu().numpy()
    return logits_N
